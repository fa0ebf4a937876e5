"""How our GRPO update grows as one picture: seconds above, peak memory below, a column for each axis, all logarithmic.

Equal numbers give equal bytes; colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.growth_page import TITLES, VALUES, axes_of, figure_name, value_text
from benchmarks.settings import Axis
from posttrain.evals.figures import PALETTE, STYLE, inline_svg
from posttrain.evals.inputs import Source
from studies.objectives.figure import standing_alone

PANEL = (2.4, 2.0)
"""Inches: width and height."""
LABELLED = 4
"""Points of which each has its value written below; of more, every other one."""


def pictures(results: Mapping[str, Mapping[str, Source]]) -> dict[str, str]:
    """File name -> SVG text, for every device whose growth was measured."""
    return {
        figure_name(kind): picture(axes)
        for kind, measured in results.items()
        if "growth" in measured and (axes := axes_of(measured["growth"]))
    }


def picture(axes: Mapping[Axis, Sequence[Mapping[str, Any]]]) -> str:
    """SVG text that stands alone."""
    with matplotlib.rc_context(STYLE):
        svg = inline_svg(
            draw(axes), "growth", description="Seconds and peak memory of a GRPO update, as its model and step grow"
        )
    return standing_alone(svg)


@matplotlib.rc_context(STYLE)
def draw(axes: Mapping[Axis, Sequence[Mapping[str, Any]]]) -> Figure:
    figure = Figure(figsize=(len(axes) * PANEL[0], 2 * PANEL[1]), layout="constrained")
    grid = figure.subplots(2, len(axes), sharex="col", sharey="row", squeeze=False)
    for column, (axis, points) in zip(grid.T, axes.items(), strict=True):
        upper, lower = column
        values = [point["value"] for point in points]
        _seconds(upper, values, points)
        memory = [point["peak"] / 2**30 for point in points]
        lower.plot(values, memory, color=PALETTE["orange"], linewidth=2, marker="o", markersize=3.5)
        for panel in column:
            _logarithmic(panel)
        step = 1 if len(values) <= LABELLED else 2
        shown = values[::-step][::-1]
        lower.set_xticks(shown, [value_text(axis, value) for value in shown])
        lower.set_xlabel(VALUES[axis], fontsize=9.5)
        upper.set_title(TITLES[axis], loc="left", fontsize=10, fontweight="bold", color=PALETTE["ink"], pad=4)
    grid[0, 0].set_ylabel("seconds per step")
    grid[1, 0].set_ylabel("peak memory, GiB")
    return figure


def _seconds(axes: Axes, values: Sequence[float], points: Sequence[Mapping[str, Any]]) -> None:
    """Medians with their range, and the operations as if the first point's rate held."""
    first = points[0]
    scaled = [first["median"] * point["operations"] / first["operations"] for point in points]
    axes.plot(values, scaled, color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
    low, high = [point["fastest"] for point in points], [point["slowest"] for point in points]
    axes.vlines(values, low, high, color=PALETTE["blue"], linewidth=1)
    median = [point["median"] for point in points]
    axes.plot(values, median, color=PALETTE["blue"], linewidth=2, marker="o", markersize=3.5)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
