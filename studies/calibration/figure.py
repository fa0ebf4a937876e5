"""Two figures of the report: a reliability diagram for each model and source, and the ECE along the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from posttrain.evals.figures import PALETTE, PAPER
from studies.calibration.ask import SOURCES

NAMES = {
    "token": "token probability",
    "consistency": "consistency",
    "verbalised": "verbalised",
    "p_true": "P(True)",
}
"""Sources as a person calls them."""
COLORS = ("blue", "orange")
"""Of the temperatures, in the order of the report."""
PANEL = (1.75, 1.75)
"""Inches: width and height of one panel."""
SHIFT = 0.12
"""Between the points of two temperatures, in places of the chain."""


def in_order(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model -> temperature -> values, both in the order of the study: the file's keys are sorted."""
    at = [f"{temperature:g}" for temperature in report["temperatures"]]
    return {name: {t: report["models"][name][t] for t in at} for name in report["order"]}


def measured(report: Mapping[str, Any]) -> list[str]:
    """Sources of which any model has a confidence."""
    at = [values for model in in_order(report).values() for values in model.values()]
    return [source for source in SOURCES if any(values[source] for values in at)]


@matplotlib.rc_context(PAPER)
def diagrams(report: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence: a row per source, a column per model, a colour per temperature."""
    sources, models = measured(report), in_order(report)
    size = (len(models) * PANEL[0] + 0.6, len(sources) * PANEL[1] + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(sources), len(models), sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid[0], models, strict=True):
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=PALETTE["ink"])
    for row, source in zip(grid, sources, strict=True):
        for axes, at in zip(row, models.values(), strict=True):
            axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=(0, (2, 3)))
            for color, values in zip(COLORS, at.values(), strict=False):
                if values[source]:
                    _bars(axes, values[source]["reliability"], PALETTE[color])
        row[0].set_ylabel(NAMES[source])
    grid[0][0].set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    for axis in (grid[0][0].xaxis, grid[0][0].yaxis):
        axis.set_major_locator(MultipleLocator(0.5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    figure.supxlabel(f"confidence (accuracy upwards); {_legend(report)}", fontsize=9.5, color=PALETTE["muted"])
    return figure


@matplotlib.rc_context(PAPER)
def along_the_chain(report: Mapping[str, Any]) -> Figure:
    """ECE of every model with its 95 % interval: a panel per source, a colour per temperature."""
    sources, models = measured(report), in_order(report)
    figure = Figure(figsize=(len(sources) * 2.6 + 0.4, 2.6), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
        for place, temperature in enumerate(report["temperatures"]):
            rows = [at[f"{temperature:g}"][source] for at in models.values()]
            there = [(i + SHIFT * place, values["ece"]) for i, values in enumerate(rows) if values]
            color = PALETTE[COLORS[place]]
            axes.plot([x for x, _ in there], [e["value"] for _, e in there], color=color, marker="o", markersize=4)
            axes.vlines([x for x, _ in there], [e["low"] for _, e in there], [e["high"] for _, e in there], color=color)
        axes.set_title(NAMES[source], loc="left", fontsize=10, fontweight="bold", color=PALETTE["ink"])
        axes.set_xticks(range(len(models)), list(models), rotation=45, ha="right")
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("ECE")
    panels[0].set_ylim(bottom=0)
    figure.supxlabel(_legend(report), fontsize=9.5, color=PALETTE["muted"])
    return figure


def _bars(axes: Axes, bars: Sequence[Mapping[str, float]], color: str) -> None:
    """A point per bin, as large as its share of the forecasts, with its interval."""
    forecasts = sum(bar["count"] for bar in bars)
    x = [bar["confidence"] for bar in bars]
    axes.vlines(x, [bar["low"] for bar in bars], [bar["high"] for bar in bars], color=color, linewidth=1, alpha=0.7)
    sizes = [6 + 60 * bar["count"] / forecasts for bar in bars]
    axes.scatter(x, [bar["accuracy"] for bar in bars], s=sizes, color=color, alpha=0.8, linewidths=0, zorder=3)


def _legend(report: Mapping[str, Any]) -> str:
    named = zip(COLORS, report["temperatures"], strict=False)
    return ", ".join(f"{color}: sampled at T = {temperature:g}" for color, temperature in named)
