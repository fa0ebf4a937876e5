"""The study as one picture: what every score gains against the square root of the KL, a panel for each way to optimise.

Equal numbers give equal bytes; colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from posttrain.evals.figures import PALETTE, STYLE, inline_svg
from posttrain.evals.overoptimization import LAWS, LEAST_DISTANCE
from posttrain.loops.gold import GOLD
from studies.objectives.figure import standing_alone
from studies.overoptimization.study import PROXY, SECOND, SEEN

PANELS = (
    ("best_of_n", "proxy", "best of n by the proxy"),
    ("best_of_n", "gold", "best of n by gold"),
    ("rl", "proxy", "RL on the proxy"),
    ("rl", "proxy_kl", "RL on the proxy with KL"),
    ("rl", "gold", "RL on gold"),
)
"""(way, arm, title)."""
LINES = {
    SEEN: ("proxy, prompts it was trained on", "gone"),
    PROXY: ("proxy, held-out prompts", "blue"),
    SECOND: ("second proxy", "orange"),
    GOLD: ("gold", "green"),
}
"""Score -> its name and its colour in PALETTE."""
ROWS = ((SEEN, PROXY), (SECOND, GOLD))
"""Apart, as an exploited proxy leaves the scale of all others."""
SIZE = (10.4, 4.6)
"""Inches."""


def picture(report: Mapping[str, Any]) -> str:
    """SVG text that stands alone."""
    with matplotlib.rc_context(STYLE):
        svg = inline_svg(draw(report), "overoptimization", description="Proxy and gold against the square root of KL")
    return standing_alone(svg)


@matplotlib.rc_context(STYLE)
def draw(report: Mapping[str, Any]) -> Figure:
    """A column for each way to optimise, with axes of its own: the KL of best of n and that of RL do not compare."""
    figure = Figure(figsize=SIZE, layout="constrained")
    grid = figure.subplots(len(ROWS), len(PANELS), sharex="col")
    for column, (way, arm, title) in enumerate(PANELS):
        curve = report[way]["curves"][arm]
        for axes, names in zip(grid[:, column], ROWS, strict=True):
            _scores(axes, curve, names)
        _gold(grid[-1, column], curve, way)
        grid[0, column].set_title(title, loc="left", fontsize=9, fontweight="bold", color=PALETTE["ink"], pad=4)
    figure.supxlabel("square root of KL to the start, nats", fontsize=9.5, color=PALETTE["muted"])
    figure.supylabel("gain, standard deviations of the start", fontsize=9.5, color=PALETTE["muted"])
    figure.legend(handles=_handles(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    return figure


def _scores(axes: Axes, curve: Mapping[str, Any], names: Sequence[str]) -> None:
    """Some scores with their intervals, from point to point: RL may come nearer to the start again."""
    distance = [math.sqrt(point["kl"]) for point in curve["points"]]
    axes.axhline(0.0, color=PALETTE["muted"], linewidth=0.8)
    for name in names:
        gains = [point["gain"][name] for point in curve["points"] if name in point["gain"]]
        if gains:  # best of n has no prompts that it trains on
            color = PALETTE[LINES[name][1]]
            axes.plot(distance, [gain["value"] for gain in gains], color=color, linewidth=2, marker="o", markersize=3)
            axes.vlines(distance, [gain["low"] for gain in gains], [gain["high"] for gain in gains], color=color, lw=1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)


def _gold(axes: Axes, curve: Mapping[str, Any], way: str) -> None:
    """The law of gold, and a mark where measured gold is highest."""
    points = curve["points"]
    furthest = max(math.sqrt(point["kl"]) for point in points)
    if curve["fit"] is not None:
        smooth = np.linspace(LEAST_DISTANCE, furthest, 60)
        law = LAWS[way](smooth, curve["fit"]["alpha"]["value"], curve["fit"]["beta"]["value"])
        axes.plot(smooth, law, color=PALETTE["ink"], linewidth=1, linestyle=(0, (3, 3)))
    best = points[curve["turn"]["index"]]
    axes.plot([math.sqrt(best["kl"])], [best["gain"][GOLD]["value"]], color=PALETTE["green"], marker="D", markersize=6)


def _handles() -> list[Line2D]:
    lines = [Line2D([], [], color=PALETTE[color], linewidth=2, label=label) for label, color in LINES.values()]
    return [
        *lines,
        Line2D([], [], color=PALETTE["ink"], linewidth=1, linestyle=(0, (3, 3)), label="law on gold"),
        Line2D([], [], color=PALETTE["green"], linewidth=0, marker="D", markersize=6, label="highest gold"),
    ]
