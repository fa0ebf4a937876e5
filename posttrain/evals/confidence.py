"""Confidence against accuracy, with intervals over questions, and temperature scaling as a repair after training.

What posttrain.evals.calibration measures once, measured so that models can be compared on the same questions. The ECE
of few forecasts is too high, since noise in a bin counts as a gap; resampling adds about the same again, so the
bootstrap says how much that is.

Sources: Guo et al., arXiv 1706.04599 (ECE, temperature scaling). Shapes: N forecasts, Q questions, B bins, R draws.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

from posttrain.evals.calibration import Bin, Forecast, bin_index, ece
from posttrain.evals.intervals import Floats, Interval, bootstrap_ratio, percentile_interval, wilson
from posttrain.evals.rerank import auroc

TEMPERATURES = (0.01, 100.0)
"""Between these a temperature is fitted: beyond them every confidence is as good as 0, 1/2 or 1."""


def columns(forecasts: Sequence[Forecast]) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """(confidence, correct, question) as arrays [N]."""
    confidence = np.array([f.confidence for f in forecasts], dtype=np.float64)
    correct = np.array([f.correct for f in forecasts], dtype=np.float64)
    return confidence, correct, np.array([f.question for f in forecasts], dtype=np.int64)


def overconfidence(forecasts: Sequence[Forecast]) -> float:
    """Mean confidence minus accuracy, in [-1, 1]; above 0: too sure."""
    confidence, correct, _ = columns(forecasts)
    return float((confidence - correct).mean())


def bounded(forecasts: Sequence[Forecast], *, floor: float) -> list[Forecast]:
    """Confidences kept `floor` away from 0 and 1: what a source cannot tell from certainty is no certainty."""
    return [dataclasses.replace(f, confidence=min(1.0 - floor, max(floor, f.confidence))) for f in forecasts]


def ece_draws(forecasts: Sequence[Forecast], counts_RQ: Floats, *, bins: int, equal_mass: bool = False) -> Floats:
    """ECE of each bootstrap draw, [R]; equal-mass bins are those of all forecasts."""
    confidence, correct, question = columns(forecasts)
    index = bin_index(confidence, bins=bins, equal_mass=equal_mass)
    questions = counts_RQ.shape[1]
    gap_QB = np.zeros((questions, bins))
    np.add.at(gap_QB, (question, index), correct - confidence)
    size_Q = np.bincount(question, minlength=questions).astype(np.float64)
    ece_R: Floats = np.abs(counts_RQ @ gap_QB).sum(axis=1) / np.maximum(1.0, counts_RQ @ size_Q)
    return ece_R


def ece_difference(
    forecasts: Sequence[Forecast], previous: Sequence[Forecast], counts_RQ: Floats, *, bins: int
) -> Interval:
    """ECE (equal width) minus that of another model on the same questions, free of what noise adds to each.

    The bootstrap's estimate of the bias (mean of the draws minus the difference found) is taken from the value, and
    twice from the draws, which have it twice: below 0 is better calibrated.
    """
    found = ece(forecasts, bins=bins) - ece(previous, bins=bins)
    difference_R = ece_draws(forecasts, counts_RQ, bins=bins) - ece_draws(previous, counts_RQ, bins=bins)
    bias = float(difference_R.mean()) - found
    return percentile_interval(found - bias, difference_R - 2.0 * bias)


def measure(forecasts: Sequence[Forecast], counts_RQ: Floats, *, bins: int, floor: float, seed: int) -> dict[str, Any]:
    """Every measure of one source of confidence with its 95 % interval over questions.

    `floor` (see `bounded`) counts in `nll` alone, which would else be infinite. `ece_debiased` is `ece` minus what
    resampling adds, at least 0. The interval of `ece` is that of the draws without what resampling added.
    """
    confidence, correct, question = columns(forecasts)
    means = {
        "confidence": confidence,
        "accuracy": correct,
        "overconfidence": confidence - correct,
        "brier": (confidence - correct) ** 2,
        "nll": _surprise(forecasts, 1.0, floor),
    }
    width, width_R = ece(forecasts, bins=bins), ece_draws(forecasts, counts_RQ, bins=bins)
    ranked = auroc(confidence, correct, question, draws=counts_RQ.shape[0], seed=seed)
    return {
        "forecasts": len(forecasts),
        **{name: _mean(value_N, question, counts_RQ).to_json() for name, value_N in means.items()},
        "ece": _around(width, width_R).to_json(),
        "ece_debiased": max(0.0, 2.0 * width - float(width_R.mean())),
        "ece_equal_mass": ece_equal_mass(forecasts, counts_RQ, bins=bins).to_json(),
        "auroc": None if ranked is None else ranked.to_json(),
        "reliability": [dataclasses.asdict(bar) for bar in reliability(forecasts, bins=bins)],
    }


def ece_equal_mass(forecasts: Sequence[Forecast], counts_RQ: Floats, *, bins: int) -> Interval:
    """ECE over bins of equal mass, with the spread of its draws without what resampling added."""
    found_R = ece_draws(forecasts, counts_RQ, bins=bins, equal_mass=True)
    return _around(ece(forecasts, bins=bins, equal_mass=True), found_R)


def reliability(forecasts: Sequence[Forecast], *, bins: int, equal_mass: bool = False) -> list[Bin]:
    """The bars of a reliability diagram, empty bins left out.

    Wilson bounds as of one forecast per question: those of one question may all be right or wrong together, and
    counting each would make the bars too short.
    """
    confidence, correct, question = columns(forecasts)
    index = bin_index(confidence, bins=bins, equal_mass=equal_mass)
    bars = []
    for here in (index == b for b in range(bins)):
        if count := int(here.sum()):
            questions = len(set(question[here].tolist()))
            rate = wilson(float(correct[here].mean()) * questions, questions)
            bars.append(Bin(float(confidence[here].mean()), rate.value, rate.low, rate.high, count))
    return bars


def scaled(forecasts: Sequence[Forecast], temperature: float, *, floor: float) -> list[Forecast]:
    """Confidences sigma(logit(c) / T): T > 1 makes less sure; 1/2 stays, and so does every order.

    What had no answer, and so confidence 0, is scaled with the rest.
    """
    moved = expit(_logits(forecasts, floor) / temperature)
    return [dataclasses.replace(f, confidence=float(c)) for f, c in zip(forecasts, moved, strict=True)]


def fit_temperature(forecasts: Sequence[Forecast], *, floor: float) -> float:
    """The T within TEMPERATURES whose `scaled` forecasts have the least negative log-likelihood (section 4.2).

    The likelihood is concave in 1/T, so there is one best; it is never worse than T = 1.
    """
    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: nll(forecasts, math.exp(log_t), floor=floor),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    best = math.exp(float(found.x))
    return best if nll(forecasts, best, floor=floor) < nll(forecasts, 1.0, floor=floor) else 1.0


def nll(forecasts: Sequence[Forecast], temperature: float, *, floor: float) -> float:
    """Negative log-likelihood (nats) of the `scaled` forecasts; from the logits, so that it is finite at any T."""
    return float(_surprise(forecasts, temperature, floor).mean())


def fit_half(questions: int, *, seed: int) -> frozenset[int]:
    """The questions on which a repair is fitted: half of them, drawn by seed; it is judged on the others."""
    return frozenset(random.Random(seed).sample(range(questions), questions // 2))


def repair(
    forecasts: Sequence[Forecast], counts_RQ: Floats, *, fitted_on: Collection[int], bins: int, floor: float
) -> dict[str, Any] | None:
    """Temperature scaling fitted on the questions `fitted_on`, judged on the others; None where a side is empty.

    `ece` and `nll` are before and after; `difference` is in ECE, after minus before.
    """
    fit = [f for f in forecasts if f.question in fitted_on]
    before = [f for f in forecasts if f.question not in fitted_on]
    if not (fit and before):
        return None
    temperature = fit_temperature(fit, floor=floor)
    after = scaled(before, temperature, floor=floor)
    return {
        "temperature": temperature,
        "ece": {"before": ece(before, bins=bins), "after": ece(after, bins=bins)},
        "nll": {"before": nll(before, 1.0, floor=floor), "after": nll(before, temperature, floor=floor)},
        "difference": ece_difference(after, before, counts_RQ, bins=bins).to_json(),
    }


def _logits(forecasts: Sequence[Forecast], floor: float) -> Floats:
    confidence, _, _ = columns(bounded(forecasts, floor=floor))
    logits: Floats = np.log(confidence) - np.log1p(-confidence)
    return logits


def _surprise(forecasts: Sequence[Forecast], temperature: float, floor: float) -> Floats:
    """-log of the probability given to what happened, [N]."""
    logits = _logits(forecasts, floor) / temperature
    surprise: Floats = np.logaddexp(0.0, np.where([f.correct for f in forecasts], -logits, logits))
    return surprise


def _mean(value_N: Floats, question_N: npt.NDArray[np.int64], counts_RQ: Floats) -> Interval:
    """Mean over the forecasts, questions resampled."""
    questions = counts_RQ.shape[1]
    total_Q = np.bincount(question_N, weights=value_N, minlength=questions)
    found = bootstrap_ratio(total_Q, np.bincount(question_N, minlength=questions), counts_RQ)
    if found is None:
        raise ValueError("calibration: got no forecast, wanted at least one")
    return found


def _around(value: float, value_R: Floats) -> Interval:
    """The spread of the draws around the value found, without their bias; at least 0."""
    found = percentile_interval(value, value_R - value_R.mean() + value)
    return Interval(value, max(0.0, found.low), found.high)
