"""The plots of the report page, as matplotlib figures that become inline SVG.

Drawn small (about the width of a phone) with direct labels instead of legends, so that one size reads on a phone and
in three columns on a desktop. Colours are names: in the page each becomes a CSS variable, so that the plots follow its
light or dark scheme. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

PALETTE = {
    "ink": "#1f2a37",
    "muted": "#6b7785",
    "grid": "#e3e7ec",
    "gone": "#c3cad3",
    "paper": "#fffffe",
    "blue": "#2460d8",
    "orange": "#d9650f",
    "green": "#12805c",
    "purple": "#7a45b8",
    "red": "#c9304a",
}
"""Names of the page's CSS variables (`--fig-<name>`) and their colours in a file that stands alone."""

WIDTH, HEIGHT, TALL = 4.4, 2.8, 3.5
"""Inches: at 72 points to the inch a little less than the 330 CSS pixels that a phone has for it."""

STYLE: Any = {
    "svg.hashsalt": "posttrain",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": PALETTE["ink"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
PAPER: Any = {**STYLE, "figure.facecolor": PALETTE["paper"]}
"""For figures that are files too: on a ground of their own they can be read on any page."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; gaps are NaN."""

    label: str
    values: Sequence[float]
    color: str
    """A name of PALETTE."""


def inline_svg(figure: Figure, name: str, *, description: str) -> str:
    """The figure as an SVG element for HTML: colours as CSS variables, ids prefixed with `name`, no metadata."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    for colour, value in PALETTE.items():
        svg = svg.replace(value, f"var(--fig-{colour})")
    # The page sets the size; the text takes the page's font.
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    svg = svg.replace(" 'DejaVu Sans'", " var(--font)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(description)}"', 1).rstrip() + "\n"


@matplotlib.rc_context(STYLE)
def curves(
    steps: Sequence[float], lines: Sequence[Line], *, unit: str, percent: bool = False, zero: bool = False
) -> Figure:
    """Curves over training steps: the values pale, their moving average strong and labelled at its end."""
    figure, axes = _axes()
    for line in lines:
        _curve(axes, steps, line)
    _spread_labels(axes, steps, lines)
    _finish(axes, x="step", y=unit, percent=percent)
    if zero:
        axes.set_ylim(bottom=0)
    return figure


@matplotlib.rc_context(STYLE)
def length_and_accuracy(
    points: Sequence[Mapping[str, float]], *, start: float | None, curve: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Accuracy above, tokens per answer below, and where the length reward starts; None: there is none.

    `points` are looks at the held-out questions (step, accuracy, tokens_correct), drawn as dots with their values;
    `curve` are the columns of training (step, reward/accuracy, length/correct, length/wrong), drawn as lines.
    """
    figure = Figure(figsize=(WIDTH, TALL), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    panels = (
        (upper, "accuracy", (("reward/accuracy", "training", "green"),)),
        (lower, "tokens_correct", (("length/correct", "right", "blue"), ("length/wrong", "wrong", "orange"))),
    )
    last = max(point["step"] for point in points)
    for axes, key, columns in panels:
        lines = [Line(label, curve[column], color) for column, label, color in columns] if curve else []
        for line in lines:
            _curve(axes, curve["step"] if curve else (), line)
        for point in points:
            color = PALETTE[columns[0][2]]
            axes.scatter(
                point["step"], point[key], s=34, color=color, edgecolors=PALETTE["ink"], linewidths=1.1, zorder=4
            )
            value = f"{100 * point[key]:.0f} %" if axes is upper else f"{point[key]:.0f}"
            right = point is not points[0]
            offset = (-5, -8) if right else (6, -8)
            _write(axes, value, (point["step"], point[key]), offset=offset, ha="right" if right else "left", va="top")
        if start is not None:
            axes.axvline(start, color=PALETTE["ink"], linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
            axes.axvspan(start, last, color=PALETTE["ink"], alpha=0.05, linewidth=0)
        _finish(axes, x="step" if axes is lower else "", y="", percent=axes is upper)
    lower.set_ylim(bottom=0)
    upper.margins(y=0.2)
    for axes, _, columns in panels:
        lines = [Line(label, curve[column], color) for column, label, color in columns] if curve else []
        _spread_labels(axes, curve["step"] if curve else (), lines, rows=2, space=8)
    upper.set_title("accuracy (dots: held-out)", loc="left", fontsize=9.5, color=PALETTE["muted"], pad=6)
    lower.set_title("tokens per answer", loc="left", fontsize=9.5, color=PALETTE["muted"], pad=6)
    if start is not None:
        _write(upper, "length reward starts", (start, 1.0), above=True, offset=(-5, -2), ha="right", va="top")
    return figure


@matplotlib.rc_context(STYLE)
def pass_rate_histogram(histogram: Mapping[str, int], *, kept: tuple[float, float]) -> Figure:
    """Prompts by their number of right samples; those with a pass rate in `kept` stay, the others are named."""
    figure, axes = _axes(height=TALL)
    right, problems = [int(key) for key in histogram], list(histogram.values())
    samples = max(right)
    low, high = kept
    words = []
    for count, size in zip(right, problems, strict=True):
        rate = count / samples
        stays = low <= rate <= high
        axes.bar(count, size, width=0.8, color=PALETTE["blue" if stays else "gone"])
        _write(axes, str(size), (count, size), offset=(0, 3), va="bottom", color="ink" if stays else "muted")
        words.append(str(count) if stays else f"{count}\n{'impossible' if rate < low else 'trivial'}")
    _finish(axes, x=f"right answers of {samples} samples", y="prompts")
    axes.set_xticks(right, words)
    axes.margins(y=0.1)
    return figure


@matplotlib.rc_context(STYLE)
def budgets(models: Mapping[str, Sequence[Mapping[str, float]]], colors: Sequence[str]) -> Figure:
    """Accuracy when thinking is stopped after so many tokens, with 95 % bands."""
    figure, axes = _axes(height=TALL)
    lines, ticks = [], [point["tokens"] for point in next(iter(models.values()))]
    places = list(range(len(ticks)))
    for (model, points), color in zip(models.items(), colors, strict=True):
        y = [point["accuracy"] for point in points]
        low, high = [p["low"] for p in points], [p["high"] for p in points]
        axes.fill_between(places, low, high, color=PALETTE[color], alpha=0.14, linewidth=0)
        axes.plot(places, y, color=PALETTE[color], linewidth=2, marker="o", markersize=4)
        lines.append(Line(model, y, color))
    _spread_labels(axes, places, lines, smooth=False)
    _finish(axes, x="thinking tokens allowed", y="accuracy", percent=True)
    axes.set_xticks(places, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    return figure


@matplotlib.rc_context(STYLE)
def journey(points: Sequence[Mapping[str, Any]]) -> Figure:
    """The chain in the plane of cost and quality: tokens per answer against accuracy, model by model.

    Each point: model, tokens, accuracy, low, high.
    """
    figure, axes = _axes(height=TALL)
    x, y = [p["tokens"] for p in points], [p["accuracy"] for p in points]
    for a, b in itertools.pairwise(range(len(points))):
        arrow = {"arrowstyle": "-|>", "color": PALETTE["muted"], "linewidth": 1.2, "shrinkA": 6, "shrinkB": 6}
        axes.annotate("", (x[b], y[b]), (x[a], y[a]), arrowprops=arrow)
    axes.vlines(
        x, [p["low"] for p in points], [p["high"] for p in points], color=PALETTE["blue"], linewidth=1.2, alpha=0.5
    )
    axes.scatter(x, y, s=48, color=PALETTE["blue"], edgecolors=PALETTE["paper"], linewidths=1, zorder=3)
    _finish(axes, x="tokens per answer (thinking on)", y="accuracy", percent=True)
    axes.margins(0.18, 0.16)
    for point, (offset, side) in zip(points, _label_places(axes, points), strict=True):
        _write(axes, point["model"], (point["tokens"], point["accuracy"]), offset=offset, ha=side, bold=True)
    return figure


@matplotlib.rc_context(STYLE)
def domains(models: Mapping[str, Mapping[str, Mapping[str, float]]], colors: Sequence[str]) -> Figure:
    """Accuracy by domain as a row of dots per domain, from the first model to the last."""
    figure, axes = _axes(height=TALL)
    rows = sorted(next(iter(models.values())))
    for place, domain in enumerate(rows):
        values = [model[domain]["value"] for model in models.values()]
        heights = place + np.linspace(-0.22, 0.22, len(values))
        axes.plot(values, heights, color=PALETTE["grid"], linewidth=3, zorder=1)
        dots = [PALETTE[color] for color in colors]
        axes.scatter(values, heights, s=50, color=dots, edgecolors=PALETTE["paper"], linewidths=0.9, zorder=2)
    for place, (model, color) in enumerate(zip(models, colors, strict=True)):
        share = (place + 0.5) / len(models)
        _write(axes, model, (1.02 * share, 1.0), above=True, offset=(0, 4), va="bottom", color=color, bold=True)
    _finish(axes, x="accuracy with thinking", y="")
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(_percent())
    axes.set_xlim(0, 1.02)
    return figure


def moving_average(values: Sequence[float], *, window: int) -> np.ndarray:
    """Centred mean of the finite values within the window; NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    half = window // 2
    smooth = np.full(array.shape, np.nan)
    for i in range(array.size):
        near = array[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        if near.size:
            smooth[i] = near.mean()
    return smooth


def _axes(*, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _write(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    *,
    offset: tuple[float, float],
    color: str = "ink",
    ha: str = "center",
    va: str = "center",
    bold: bool = False,
    above: bool = False,
) -> None:
    """Text `offset` points from a place in data coordinates; `above`: its height is a share of the axes."""
    axes.annotate(
        text,
        at,
        xycoords=("data", "axes fraction") if above else "data",
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        color=PALETTE[color],
        fontsize=9.5 if bold else 9,
        fontweight="bold" if bold else "normal",
        annotation_clip=False,
        zorder=5,
    )


def _curve(axes: Axes, steps: Sequence[float], line: Line) -> None:
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(line.values, dtype=np.float64)
    there = np.isfinite(y)
    color = PALETTE[line.color]
    axes.plot(x[there], y[there], color=color, linewidth=0.8, alpha=0.3)
    axes.plot(x[there], moving_average(y[there], window=_window(there.sum())), color=color, linewidth=2)


def _window(points: int) -> int:
    return max(1, int(points) // 12) | 1


def _spread_labels(
    axes: Axes, steps: Sequence[float], lines: Sequence[Line], *, smooth: bool = True, rows: int = 1, space: float = 5
) -> None:
    """Write each label at the end of its curve, moved apart where ends are close; `rows`: panels above one another."""
    ends = []
    lines = [line for line in lines if np.isfinite(np.asarray(line.values, dtype=np.float64)).any()]
    for line in lines:
        y = np.asarray(line.values, dtype=np.float64)
        y = y[np.isfinite(y)]
        ends.append(float(moving_average(y, window=_window(y.size))[-1]) if smooth else float(y[-1]))
    low, high = axes.get_ylim()
    gap = 0.085 * (high - low) * rows
    # The least moves that keep the order and a gap between neighbours: isotonic once the gaps are taken out.
    if not ends:
        return
    rank = np.argsort(np.argsort(ends, kind="stable"))
    spread = isotonic_regression(np.sort(ends) - gap * np.arange(len(ends))).x + gap * np.arange(len(ends))
    for line, place in zip(lines, rank, strict=True):
        _write(axes, line.label, (max(steps), spread[place]), offset=(space, 0), ha="left", color=line.color, bold=True)


def _label_places(axes: Axes, points: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[float, float], str]]:
    """Offset (points) and alignment of each label: the nearest place that covers no other point and no other label."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    across, up = 72 * WIDTH * 0.84 / (right - left), 72 * TALL * 0.74 / (top - bottom)
    dots = [((p["tokens"] - left) * across, (p["accuracy"] - bottom) * up) for p in points]
    taken = [(x - 4.0, y - 4.0, x + 4.0, y + 4.0) for x, y in dots]
    for (x, y), (u, v) in itertools.pairwise(dots):
        along = [(x + (u - x) * t, y + (v - y) * t) for t in np.linspace(0, 1, 12)[1:-1]]
        taken += [(a - 1.0, b - 1.0, a + 1.0, b + 1.0) for a, b in along]
    places = []
    for point, (x, y) in zip(points, dots, strict=True):
        width = 6.4 * len(point["model"])
        best = (np.inf, 0.0, 0.0, "left", taken[0])
        for distance, (dx, dy) in itertools.product(
            (8, 14, 20, 28), ((1, 0), (-1, 0), (0.7, 1), (-0.7, 1), (0.7, -1), (-0.7, -1))
        ):
            a, b = x + dx * distance, y + dy * distance
            box = (a, b - 6, a + width, b + 6) if dx > 0 else (a - width, b - 6, a, b + 6)
            hits = sum(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
            if hits < best[0]:
                best = (hits, dx * distance, dy * distance, "left" if dx > 0 else "right", box)
        taken.append(best[4])
        places.append(((best[1], best[2]), best[3]))
    return places


def _finish(axes: Axes, *, x: str, y: str, percent: bool = False) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=9.5, color=PALETTE["muted"], pad=6)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    if percent:
        axes.yaxis.set_major_formatter(_percent())


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.0f} %")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
