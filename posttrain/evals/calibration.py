"""Does confidence mean what it says: expected calibration error, Brier score and reliability diagrams.

Confidence here is answer consistency: how often a model repeats an answer. The mode scored by the samples that elected
it looks too sure (it was selected for being frequent), so one half of the samples elects and the other half votes.
No answer counts as wrong with confidence 0, and stays in.

Sources: Guo et al., arXiv 1706.04599 (ECE); Wilson bars per bin. Shapes: N forecasts, Q questions, B bins, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posttrain.evals.intervals import Floats, Interval, percentile_interval, wilson
from posttrain.evals.passk import majority_vote


@dataclass(frozen=True, slots=True)
class Forecast:
    """One answer with the confidence it was given with."""

    question: int
    """Index of its question: the cluster."""
    confidence: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram."""

    confidence: float
    """Mean confidence of its forecasts."""
    accuracy: float
    low: float
    """Wilson bounds of the accuracy."""
    high: float
    count: int


def split_half(
    answers_QK: Sequence[Sequence[str | None]],
    correct_QK: Sequence[Sequence[bool | None]],
    *,
    question_ids: Sequence[str],
    seed: int,
) -> list[Forecast]:
    """Two forecasts per question: each half of its samples elects an answer, the other half is its confidence.

    An answer whose verifier could not say (`None`) gives no forecast. With an odd number of samples the last is unused.
    """
    forecasts = []
    rows = zip(answers_QK, correct_QK, question_ids, strict=True)
    for index, (answers, correct, question_id) in enumerate(rows):
        half = len(answers) // 2
        if half < 1:
            raise ValueError(f"{question_id}: got {len(answers)} samples, wanted at least 2 to split")
        for elect, vote in ((slice(0, half), slice(half, 2 * half)), (slice(half, 2 * half), slice(0, half))):
            mode = majority_vote(answers[elect], seed=seed, question_id=question_id)
            if mode is None:
                forecasts.append(Forecast(index, 0.0, False))
                continue
            flag = correct[elect][answers[elect].index(mode)]
            if flag is not None:
                forecasts.append(Forecast(index, list(answers[vote]).count(mode) / half, flag))
    return forecasts


def bin_index(confidence_N: npt.ArrayLike, *, bins: int, equal_mass: bool) -> npt.NDArray[np.int64]:
    """Bin of each forecast, [N]: equal width and right-closed, (0, .1] (.1, .2] ..., 0 in the first; or equal mass.

    Equal mass never parts equal confidences, so that the result does not depend on the order of the forecasts.
    """
    confidence = np.asarray(confidence_N, dtype=np.float64)
    if not equal_mass:
        # The rounding keeps 0.3 = 3/10 in its bin although 0.3 * 10 is above 3 in floating point.
        return np.clip(np.ceil(np.round(confidence * bins, 9)).astype(np.int64) - 1, 0, bins - 1)
    first_of_equals = np.searchsorted(np.sort(confidence), confidence, side="left")
    return (first_of_equals * bins // max(1, confidence.size)).astype(np.int64)


def _arrays(forecasts: Sequence[Forecast]) -> tuple[Floats, Floats]:
    confidence = np.array([f.confidence for f in forecasts], dtype=np.float64)
    return confidence, np.array([f.correct for f in forecasts], dtype=np.float64)


def ece(forecasts: Sequence[Forecast], *, bins: int, equal_mass: bool = False) -> float:
    """sum_b (n_b / n) |accuracy_b - confidence_b|; biased upward for few forecasts, and dependent on the bins."""
    confidence, correct = _arrays(forecasts)
    index = bin_index(confidence, bins=bins, equal_mass=equal_mass)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(forecasts))


def ece_interval(forecasts: Sequence[Forecast], counts_RQ: Floats, *, bins: int) -> Interval:
    """ECE (equal width) with a percentile interval over resampled questions."""
    confidence, correct = _arrays(forecasts)
    question = np.array([f.question for f in forecasts])
    index = bin_index(confidence, bins=bins, equal_mass=False)
    gap_QB = np.zeros((counts_RQ.shape[1], bins))
    np.add.at(gap_QB, (question, index), correct - confidence)
    size_Q = np.bincount(question, minlength=counts_RQ.shape[1]).astype(np.float64)
    ece_R = np.abs(counts_RQ @ gap_QB).sum(axis=1) / np.maximum(1.0, counts_RQ @ size_Q)
    return percentile_interval(ece(forecasts, bins=bins), ece_R)


def brier(forecasts: Sequence[Forecast]) -> float:
    """Mean of (confidence - correct)^2: 0 is perfect, .25 is always saying one half."""
    confidence, correct = _arrays(forecasts)
    return float(np.mean((confidence - correct) ** 2))


def negative_log_likelihood(forecasts: Sequence[Forecast]) -> float:
    """Mean of -log of the probability given to what happened (nats); infinite where that was 0."""
    confidence, correct = _arrays(forecasts)
    with np.errstate(divide="ignore"):
        return float(np.mean(-np.log(np.where(correct == 1.0, confidence, 1.0 - confidence))))


def auroc(forecasts: Sequence[Forecast]) -> float | None:
    """Probability that a right answer has more confidence than a wrong one (ties half); None without both."""
    confidence, correct = _arrays(forecasts)
    right, wrong = confidence[correct == 1.0], np.sort(confidence[correct == 0.0])
    if not (right.size and wrong.size):
        return None
    below, upto = np.searchsorted(wrong, right, side="left"), np.searchsorted(wrong, right, side="right")
    return float((below + upto).sum() / (2.0 * right.size * wrong.size))


def reliability(forecasts: Sequence[Forecast], *, bins: int) -> list[Bin]:
    """The bars of a reliability diagram (equal width), empty bins left out."""
    confidence, correct = _arrays(forecasts)
    index = bin_index(confidence, bins=bins, equal_mass=False)
    bars = []
    for here in (index == b for b in range(bins)):
        if count := int(here.sum()):
            rate = wilson(float(correct[here].sum()), count)
            bars.append(Bin(float(confidence[here].mean()), rate.value, rate.low, rate.high, count))
    return bars
