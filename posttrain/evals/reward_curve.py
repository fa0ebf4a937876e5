"""RL on a reward model as one picture: what is optimised and what is wanted, against the distance from the start.

The looks of stage align: the reward model's mean score of fresh answers to held-out prompts, a second reward model's
where there is one, and the judge's (gold), at the square root of the KL spent (Gao et al., arXiv 2210.10760). Scores
have units of their own, so each has a panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posttrain.evals.figures import PALETTE, STYLE, TALL, WIDTH
from posttrain.evals.inputs import Source

SCORES = {
    "proxy": ("reward model, held-out prompts", "blue"),
    "second_proxy": ("second reward model, same answers", "orange"),
    "gold": ("gold: the judge, same answers", "green"),
}
"""Score -> its panel's title and its colour; a second reward model is not always there."""
HALF_WIDTH = 1.959964
"""Standard errors on each side of a mean in its 95 % interval."""


def looks_of(align: Source) -> list[dict[str, float]]:
    """Steps, KL and scores of stage align's looks, by step; raises DataError naming the key that is missing."""
    steps = sorted(align.need("rl.heldout"), key=int)
    first = align.need(f"rl.heldout.{steps[0]}")
    keys = [f"{name}{part}" for name in SCORES if name != "second_proxy" or name in first for part in ("", "_error")]
    return [
        {"step": float(step), **{key: align.need(f"rl.heldout.{step}.{key}") for key in ("kl", *keys)}}
        for step in steps
    ]


@matplotlib.rc_context(STYLE)
def reward_curve(looks: Sequence[Mapping[str, float]], *, kept: int) -> Figure:
    """A panel per score of `looks` (step, kl in nats, scores with their standard errors); a diamond at step `kept`."""
    names = [name for name in SCORES if name in looks[0]]
    figure = Figure(figsize=(WIDTH, TALL * len(names) / 2), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True)
    for axes, name in zip(panels, names, strict=True):
        _score(axes, looks, name, kept=kept)
    panels[-1].set_xlabel("square root of KL from the start, nats")
    return figure


def _score(axes: Axes, looks: Sequence[Mapping[str, float]], name: str, *, kept: int) -> None:
    """From look to look, as RL may come nearer to the start again."""
    title, color = SCORES[name][0], PALETTE[SCORES[name][1]]
    distance = [math.sqrt(max(look["kl"], 0.0)) for look in looks]
    values = [look[name] for look in looks]
    width = [HALF_WIDTH * look[f"{name}_error"] for look in looks]
    axes.errorbar(distance, values, yerr=width, color=color, linewidth=2, elinewidth=1, marker="o", markersize=3.5)
    for x, y, look in zip(distance, values, looks, strict=True):
        if look["step"] == kept:
            axes.plot([x], [y], color=color, marker="D", markersize=8, markeredgecolor=PALETTE["ink"], zorder=4)
    axes.set_title(title, loc="left", fontsize=9.5, color=PALETTE["muted"], pad=6)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
