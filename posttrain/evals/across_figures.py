"""Two figures of all models at once: who beats whom, and a reliability diagram for each.

On the report page and as files of their own, hence on paper. Drawn small, as all of posttrain.evals.figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator, PercentFormatter

from posttrain.evals.figures import PALETTE, PAPER, TALL, WIDTH
from posttrain.evals.intervals import Interval

ACROSS = 3
"""Diagrams beside one another."""
FAINT, STRONG = 0.1, 0.5
"""Opacity of a cell whose win rate is next to 50 %, and of one at 0 or 100 %."""


@matplotlib.rc_context(PAPER)
def win_matrix(matrix: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Win rate of the row's model over the column's in per cent, with its interval; blue above a half, orange below.

    A cell has no colour where the interval holds 50 %: no difference was found.
    """
    figure = Figure(figsize=(WIDTH, TALL), layout="constrained")
    axes = figure.subplots()
    models = list(matrix)
    for y, row in enumerate(models):
        for x, column in enumerate(models):
            if row != column:
                _cell(axes, x, y, matrix[row][column])
    places = range(len(models))
    axes.set_xticks(places, models)
    axes.set_yticks(places, models)
    axes.tick_params(length=0, labelcolor=PALETTE["ink"], top=False, labeltop=True, labelbottom=False)
    axes.set(xlim=(-0.5, len(models) - 0.5), ylim=(len(models) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("over", color=PALETTE["muted"])
    axes.xaxis.set_label_position("top")
    return figure


@matplotlib.rc_context(PAPER)
def reliability(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence, a diagram per model: bars are 95 % intervals, dots as large as their share.

    Each model: `reliability` (bars with confidence, accuracy, low, high, count), `ece_equal_mass` (value, low, high).
    """
    rows = -(-len(models) // ACROSS)
    figure = Figure(figsize=(WIDTH, TALL), layout="constrained")
    grid = figure.subplots(rows, ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid, models.items(), strict=False):
        error = values["ece_equal_mass"]
        words = f"ECE {error['value']:.2f} ({error['low']:.2f}\N{EN DASH}{error['high']:.2f})"
        axes.set_title(f"{name}\n", loc="left", fontsize=9.5, fontweight="bold", color=PALETTE["ink"], pad=4)
        axes.annotate(words, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", fontsize=8)
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=(0, (2, 3)))
        _bars(axes, values["reliability"])
        axes.spines["left"].set_visible(False)
    grid[0].set(xlim=(-0.07, 1.07), ylim=(-0.05, 1.05))
    for axis, symbol in ((grid[0].xaxis, ""), (grid[0].yaxis, " %")):
        axis.set_major_locator(MultipleLocator(0.5))
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=symbol))
    figure.supxlabel("confidence in % (accuracy upwards)", fontsize=9.5, color=PALETTE["muted"])
    return figure


def _cell(axes: Axes, x: int, y: int, rate: Interval) -> None:
    color, opacity = PALETTE["grid"], 0.0
    if rate.low > 0.5 or rate.high < 0.5:
        color = PALETTE["blue" if rate.low > 0.5 else "orange"]
        opacity = FAINT + (STRONG - FAINT) * 2.0 * abs(rate.value - 0.5)
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=color, alpha=opacity, linewidth=0))
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=PALETTE["grid"], linewidth=0.8))
    interval = f"{100 * rate.low:.0f}\N{EN DASH}{100 * rate.high:.0f}"
    axes.text(x, y - 0.14, f"{100 * rate.value:.0f}", ha="center", va="center", fontsize=10, fontweight="bold")
    axes.text(x, y + 0.24, interval, ha="center", va="center", fontsize=7.5)


def _bars(axes: Axes, bars: list[Mapping[str, float]]) -> None:
    forecasts = sum(bar["count"] for bar in bars)
    x, y = [bar["confidence"] for bar in bars], [bar["accuracy"] for bar in bars]
    color = PALETTE["blue"]
    axes.vlines(x, [bar["low"] for bar in bars], [bar["high"] for bar in bars], color=color, linewidth=1.4)
    axes.plot(x, y, color=color, linewidth=1, alpha=0.5)
    sizes = [8 + 50 * bar["count"] / forecasts for bar in bars]
    axes.scatter(x, y, s=sizes, color=color, edgecolors=PALETTE["paper"], linewidths=0.6, zorder=3)
