"""The study as one picture: held-out accuracy over the steps, a small panel per objective, all others pale behind it.

Equal numbers give equal bytes. Colours are CSS variables defined in the file, so that it follows the reader's light or
dark scheme wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from posttrain.evals.figures import PALETTE, STYLE, inline_svg

COLUMNS = 4
PANEL = (2.1, 1.7)
"""Inches: width and height."""

DARK = {
    "ink": "#e6edf3",
    "muted": "#9aa6b2",
    "grid": "#2a323b",
    "gone": "#4a545f",
    "paper": "#161b22",
    "blue": "#6f9bff",
    "orange": "#f0883e",
    "green": "#4cc79a",
    "purple": "#b58cf0",
}
"""Colours of PALETTE in a dark scheme, where a study draws them."""


def picture(curves: Mapping[str, Sequence[tuple[float, float]]], *, start: float) -> str:
    """SVG text of a panel for each objective: its (share of its steps, accuracy); dashed is sft's accuracy `start`."""
    with matplotlib.rc_context(STYLE):
        svg = inline_svg(_panels(curves, start), "objectives", description="Held-out accuracy over the steps")
    return standing_alone(svg)


def _panels(curves: Mapping[str, Sequence[tuple[float, float]]], start: float) -> Figure:
    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * PANEL[0], rows * PANEL[1]), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes, name in zip(panels, curves, strict=False):
        for other in curves.values():
            axes.plot(*zip(*other, strict=True), color=PALETTE["gone"], linewidth=0.8)
        axes.axhline(start, color=PALETTE["muted"], linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(*zip(*curves[name], strict=True), color=PALETTE["blue"], linewidth=2, marker="o", markersize=3.5)
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=PALETTE["ink"], pad=4)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MultipleLocator(0.5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.grid(axis="x", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelbottom=True)
    figure.supxlabel("steps", fontsize=9.5, color=PALETTE["muted"])
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    return figure


def standing_alone(svg: str) -> str:
    """An inline SVG with the variables that a page would give it."""
    light = "".join(f"--fig-{name}:{value};" for name, value in PALETTE.items())
    dark = "".join(f"--fig-{name}:{value};" for name, value in DARK.items())
    style = (
        f"<style>svg{{--font:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;{light}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    head, _, body = svg.partition(">")
    return f"{head}>\n {style}{body}"
