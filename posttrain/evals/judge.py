"""The rule judge of the default world: right before wrong, then one script before two, then shorter before longer.

It stands for a person's taste: it labels the pairs of stage `prefer` and compares models by win rate, always on the
same prompts. What it looks at is given to it, so that it reads no text and cannot be talked into anything. A second way
to make pairs knows nothing but right, wrong and length: the shortest right answer over long ones.

Shapes: G samples of a prompt; Q questions, I and J samples of the two models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from posttrain.evals.intervals import Floats, Interval, bootstrap_mean

CORRECT_UNITS = 4.0
SCRIPT_UNITS = 2.0
"""Each level outweighs all below it together (4 > 2 + 1), so that the sign of a margin is the lexicographic order."""

LONGER = 1.5
"""How many times as long as the shortest right answer a right one must be to be a negative of `shortest`."""

Ordered = tuple[int, int, float]
"""Index of the better, index of the worse, margin > 0."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rule sees of a response."""

    correct: bool
    single_script: bool
    """No words of a second script in its thinking."""
    tokens: int


@dataclass(frozen=True, slots=True)
class WinRate:
    rate: Interval
    """Share of comparisons won, ties half."""
    ties: float
    by_correct: float
    """Shares of all comparisons decided at each level of the rule; with `ties` they sum to 1."""
    by_script: float
    by_length: float

    def to_json(self) -> dict[str, float]:
        """The rate with its bounds, and the shares."""
        parts = dataclasses.asdict(self)
        return {**self.rate.to_json(), **{name: value for name, value in parts.items() if name != "rate"}}


def margin(first: Judged, second: Judged) -> float:
    """How much better `first` is, in (-7, 7): the sign is the rule, the length part is the relative gap in tokens."""
    return float(_margins([first], [second])[0][0, 0])


def order(first: Judged, second: Judged) -> tuple[int, float]:
    """(index of the better of the two: 0 or 1, margin >= 0); (0, 0.0) for a tie, which makes no pair."""
    gap = margin(first, second)
    return (0, gap) if gap >= 0 else (1, -gap)


def rule_pairs(judged_G: Sequence[Judged]) -> list[Ordered]:
    """Every two samples that do not tie."""
    pairs = []
    for i, j in combinations(range(len(judged_G)), 2):
        better, gap = order(judged_G[i], judged_G[j])
        if gap > 0.0:
            pairs.append((i, j, gap) if better == 0 else (j, i, gap))
    return pairs


def shortest_pairs(judged_G: Sequence[Judged]) -> list[Ordered]:
    """The shortest right sample over longer wrong ones, and over right ones more than LONGER times as long.

    Kimi k1.5's pairs of long-to-short DPO (arXiv 2501.12599, section 2.4). The margin is the share of the longer
    response that the shorter one saves.
    """
    right = [i for i, sample in enumerate(judged_G) if sample.correct]
    if not right:
        return []
    best = min(right, key=lambda i: judged_G[i].tokens)
    tokens = judged_G[best].tokens
    worse = [i for i, r in enumerate(judged_G) if r.tokens > (LONGER * tokens if r.correct else tokens)]
    return [(best, i, 1.0 - tokens / judged_G[i].tokens) for i in worse]


PAIRINGS: Mapping[str, Callable[[Sequence[Judged]], list[Ordered]]] = {"rule": rule_pairs, "shortest": shortest_pairs}


def win_rate(first_QI: Sequence[Sequence[Judged]], second_QJ: Sequence[Sequence[Judged]], counts_RQ: Floats) -> WinRate:
    """Win rate of the first model over the second: every sample against every sample of the same question."""
    wins, levels = [], []
    for first, second in zip(first_QI, second_QJ, strict=True):
        gaps, level = _margins(first, second)
        wins.append(float(np.mean((gaps > 0) + 0.5 * (gaps == 0))))
        levels.append([float(np.mean(level == i)) for i in range(4)])
    ties, by_correct, by_script, by_length = np.mean(levels, axis=0).tolist()
    return WinRate(bootstrap_mean(wins, counts_RQ), ties, by_correct, by_script, by_length)


def _margins(first: Sequence[Judged], second: Sequence[Judged]) -> tuple[Floats, Floats]:
    """Margins [I, J] and the level that decided each: 0 tie, 1 correct, 2 script, 3 length."""
    correct = np.subtract.outer([float(r.correct) for r in first], [float(r.correct) for r in second])
    script = np.subtract.outer([float(r.single_script) for r in first], [float(r.single_script) for r in second])
    a, b = (
        np.array([[r.tokens] for r in first], dtype=np.float64),
        np.array([r.tokens for r in second], dtype=np.float64),
    )
    length = (b - a) / np.maximum(1.0, np.maximum(a, b))
    level = np.where(correct != 0, 1.0, np.where(script != 0, 2.0, np.where(length != 0, 3.0, 0.0)))
    return CORRECT_UNITS * correct + SCRIPT_UNITS * script + length, level
