"""Choosing one of N samples: what each way to choose is worth at equal samples.

All arms see the same samples. A question's pool is cut into blocks of N, and an arm's accuracy on the question is its
mean over the blocks: unbiased, and paired between arms. A tie counts as the mean of what is tied, which is what
breaking it at random gives on average; no arm gains from the order of the samples.

Arms: `random` (one sample), `oracle` (right if any is: pass@N), `majority`, and for every score of the samples
`best_<score>` (the highest) and `weighted_<score>` (the answer with the largest sum of scores). Under `best_` the mean
score of what was chosen is reported too: where it rises with N and accuracy does not, the score is being exploited
(Gao et al., arXiv 2210.10760).

Sources: Cobbe et al., arXiv 2110.14168 (best of N); Wang et al., arXiv 2203.11171 (majority); Li et al., arXiv
2206.02336 (weighted majority). Shapes: Q questions, K samples of a question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posttrain.evals.intervals import Floats, Interval, bootstrap_mean, paired_difference, percentile_interval, resample


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample and what is known of it."""

    answer: str | None
    """None has no vote."""
    correct: bool
    scores: Mapping[str, float]


Arm = Callable[[Sequence[Candidate]], float]
"""Probability that what is chosen from a block is right."""


def pick_any(block: Sequence[Candidate]) -> float:
    return _mean([candidate.correct for candidate in block])


def pick_right(block: Sequence[Candidate]) -> float:
    return float(any(candidate.correct for candidate in block))


def by_majority(block: Sequence[Candidate]) -> float:
    """The most frequent answer."""
    return _elect(block, [1.0] * len(block))


def by_best(score: str) -> Arm:
    """The sample with the highest score."""

    def arm(block: Sequence[Candidate]) -> float:
        return _mean([candidate.correct for candidate in _highest(block, score)])

    return arm


def by_weight(score: str) -> Arm:
    """The answer whose samples have the largest sum of scores."""

    def arm(block: Sequence[Candidate]) -> float:
        return _elect(block, [candidate.scores[score] for candidate in block])

    return arm


def _highest(block: Sequence[Candidate], score: str) -> list[Candidate]:
    top = max(candidate.scores[score] for candidate in block)
    return [candidate for candidate in block if candidate.scores[score] == top]


def _elect(block: Sequence[Candidate], weights: Sequence[float]) -> float:
    """Whether the answer of the largest total weight is right; 0 where nobody answers."""
    totals: dict[str, float] = defaultdict(float)
    right: dict[str, bool] = {}
    for candidate, weight in zip(block, weights, strict=True):
        if candidate.answer is not None:
            totals[candidate.answer] += weight
            right[candidate.answer] = candidate.correct
    if not totals:
        return 0.0
    top = max(totals.values())
    # Sums of the same weights in another order differ in their last digits.
    return _mean([right[answer] for answer, total in totals.items() if total >= top - 1e-12 * abs(top)])


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values)


def arms(scores: Sequence[str]) -> dict[str, Arm]:
    """Every way to choose, for samples that have these scores."""
    named: dict[str, Arm] = {"random": pick_any, "majority": by_majority}
    named |= {f"best_{score}": by_best(score) for score in scores}
    named |= {f"weighted_{score}": by_weight(score) for score in scores}
    return named | {"oracle": pick_right}


@dataclass(frozen=True, slots=True)
class Point:
    """An arm at a number of samples."""

    accuracy: Interval
    over_majority: Interval
    """Accuracy minus that of the majority vote, question by question."""
    score: float | None
    """Mean score of what was chosen, for the `best_` arms."""


def blocks(pool: Sequence[Candidate], size: int) -> list[Sequence[Candidate]]:
    """The pool in blocks of `size`; raises ValueError where they do not fill it."""
    if size < 1 or len(pool) % size:
        raise ValueError(f"best of N: got N={size} with a pool of {len(pool)} samples, wanted a divisor of the pool")
    return [pool[start : start + size] for start in range(0, len(pool), size)]


def accuracies(pools_QK: Sequence[Sequence[Candidate]], arm: Arm, *, size: int) -> Floats:
    """Accuracy of an arm on each question, [Q]."""
    return np.array([_mean([arm(block) for block in blocks(pool, size)]) for pool in pools_QK])


def chosen_score(pools_QK: Sequence[Sequence[Candidate]], score: str, *, size: int) -> float:
    """Mean score of the best of each block."""
    return _mean([_mean([max(c.scores[score] for c in block) for block in blocks(pool, size)]) for pool in pools_QK])


def rerank(
    pools_QK: Sequence[Sequence[Candidate]],
    *,
    scores: Sequence[str],
    at: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, dict[int, Point]]:
    """Every arm at every N, with intervals over resampled questions."""
    counts_RQ = resample(len(pools_QK), draws=draws, seed=seed)
    majority = {size: accuracies(pools_QK, by_majority, size=size) for size in at}
    table: dict[str, dict[int, Point]] = {}
    for name, arm in arms(scores).items():
        table[name] = {}
        for size in at:
            value_Q = accuracies(pools_QK, arm, size=size)
            score = name.removeprefix("best_") if name.startswith("best_") else None
            table[name][size] = Point(
                accuracy=bootstrap_mean(value_Q, counts_RQ),
                over_majority=paired_difference(value_Q, majority[size], counts_RQ),
                score=None if score is None else chosen_score(pools_QK, score, size=size),
            )
    return table


def auroc(
    score_N: npt.ArrayLike, positive_N: npt.ArrayLike, question_N: npt.ArrayLike, *, draws: int, seed: int
) -> Interval | None:
    """P(a positive scores above a negative), ties one half, with an interval over resampled questions.

    `question_N`: indices of the questions, the clusters. None where there is only one class. Draws that happen to hold
    one class are left out.
    """
    score, positive = np.asarray(score_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    _, question = np.unique(np.asarray(question_N), return_inverse=True)
    if positive.all() or not positive.any():
        return None
    questions = int(question.max()) + 1
    # won[p, n]: how often the positives of question p beat the negatives of question n, so that a draw is a product.
    won = np.zeros((questions, questions))
    for q in range(questions):
        mine = score[positive & (question == q), None]
        if mine.size:
            wins = ((mine > score) + 0.5 * (mine == score)).sum(axis=0) * ~positive
            won[q] = np.bincount(question, weights=wins, minlength=questions)
    positives, negatives = (np.bincount(question[side], minlength=questions) for side in (positive, ~positive))
    counts_RQ = resample(questions, draws=draws, seed=seed)
    pairs_R = (counts_RQ @ positives) * (counts_RQ @ negatives)
    wins_R = ((counts_RQ @ won) * counts_RQ).sum(axis=1)
    usable = pairs_R > 0
    value = float(won.sum() / (positives.sum() * negatives.sum()))
    return percentile_interval(value, wins_R[usable] / pairs_R[usable])
