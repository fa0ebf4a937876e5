"""How sure a measured mean is: question-clustered bootstrap, Wilson, cluster-robust errors, paired differences.

Questions are the unit that was drawn from the world, so they are what is resampled; samples of one question are not
independent. Models are compared by question, since they answer the same ones: the pairs cancel the difficulty.
Seeds of training are another level, which nothing here covers.

Source: Miller, arXiv 2411.00640. Shapes: R bootstrap draws, Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(successes: float, trials: int, *, level: float = LEVEL) -> Interval:
    """Score interval of a proportion: right for one sample per question, sane at 0 and at 1; no trials: 0 to 1."""
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # At 0 and 1 the bound is exact; rounding must not push it past the share.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def resample(questions: int, *, draws: int, seed: int) -> Floats:
    """How often each draw holds each question, counts [R, Q]; rows sum to Q. Made once, used for every statistic."""
    if questions < 1:
        raise ValueError("bootstrap: got no questions, wanted at least one")
    rng = np.random.default_rng(seed)
    counts_RQ = np.zeros((draws, questions), dtype=np.float64)
    # One histogram over (draw, question) cells, in slices that keep the index array small.
    rows = max(1, 4_000_000 // questions)
    for first in range(0, draws, rows):
        here = min(rows, draws - first)
        picked = rng.integers(questions, size=(here, questions)) + np.arange(here)[:, None] * questions
        counts_RQ[first : first + here] = np.bincount(picked.ravel(), minlength=here * questions).reshape(here, -1)
    return counts_RQ


def bootstrap_ratio(total_Q: npt.ArrayLike, weight_Q: npt.ArrayLike, counts_RQ: Floats) -> Interval | None:
    """sum(total) / sum(weight) with its percentile interval; None where all weights are 0.

    With totals and weights that are integers (right answers and samples, tokens and responses) the sums are exact, and
    so do not depend on the order of summation. Draws without weight (no right answer among those drawn) are left out.
    """
    total, weight = np.asarray(total_Q, dtype=np.float64), np.asarray(weight_Q, dtype=np.float64)
    if weight.sum() == 0:
        return None
    totals_R, weights_R = counts_RQ @ total, counts_RQ @ weight
    usable = weights_R > 0
    return percentile_interval(float(total.sum() / weight.sum()), totals_R[usable] / weights_R[usable])


def bootstrap_mean(value_Q: npt.ArrayLike, counts_RQ: Floats) -> Interval:
    """Mean over questions with its percentile interval."""
    value = np.asarray(value_Q, dtype=np.float64)
    return percentile_interval(float(value.mean()), counts_RQ @ value / value.size)


def percentile_interval(value: float, value_R: Floats, *, level: float = LEVEL) -> Interval:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(value_R, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def paired_difference(value_Q: npt.ArrayLike, previous_Q: npt.ArrayLike, counts_RQ: Floats) -> Interval:
    """Mean of (value - previous) over the same questions in the same order, questions resampled."""
    value, previous = np.asarray(value_Q, dtype=np.float64), np.asarray(previous_Q, dtype=np.float64)
    if value.shape != previous.shape:
        raise ValueError(f"paired difference: got {value.shape} against {previous.shape}, wanted the same questions")
    return bootstrap_mean(value - previous, counts_RQ)


def cluster_robust_se(clusters: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean over all values, CR0: sqrt(sum_c (sum_{i in c} e_i)^2) / n."""
    values = np.concatenate([np.asarray(cluster, dtype=np.float64) for cluster in clusters])
    sums = [float(np.sum(np.asarray(cluster) - values.mean())) for cluster in clusters]
    return math.sqrt(sum(total * total for total in sums)) / values.size


def miller_se(clusters: Sequence[Sequence[float]]) -> float:
    """Standard error of arXiv 2411.00640 eq. 4: the naive variance plus the cross terms within each cluster."""
    values = np.concatenate([np.asarray(cluster, dtype=np.float64) for cluster in clusters])
    errors = [np.asarray(cluster, dtype=np.float64) - values.mean() for cluster in clusters]
    cross = sum(float(e.sum() ** 2 - (e**2).sum()) for e in errors)
    return math.sqrt(naive_se(values) ** 2 + cross / values.size**2)


def naive_se(values: npt.ArrayLike) -> float:
    """Standard error of the mean of independent values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / math.sqrt(array.size))


def planned_se(pass_rate_Q: npt.ArrayLike, *, questions: int, samples: int) -> float:
    """Standard error to expect from `questions` x `samples` when pass rates spread like `pass_rate_Q`.

    sqrt(Var_q(p) / n + E_q[p (1 - p)] / (n K)): samples reduce only the second term (algorithms.md 12.2).
    """
    rate = np.asarray(pass_rate_Q, dtype=np.float64)
    return math.sqrt(rate.var() / questions + float((rate * (1 - rate)).mean()) / (questions * samples))


def minimum_detectable_effect(se: float) -> float:
    """Difference found with 80 % power at level .05, two-sided: (1.96 + .84) SE."""
    return 2.8 * se


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value for one sample per question: how many questions only one of two models got right."""
    n, least = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
