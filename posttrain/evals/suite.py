"""The numbers of one model: the same suite for every model and both modes, from its rows alone.

Pure: samples come from posttrain.evals.measure. Every interval is a 95 % percentile bootstrap over questions, all of
one model from the same draws; the accuracies at budgets have one sample per question and Wilson intervals.

Shapes: Q questions, R bootstrap draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.evals import calibration
from posttrain.evals.intervals import (
    Floats,
    Interval,
    bootstrap_ratio,
    cluster_robust_se,
    paired_difference,
    resample,
    wilson,
)
from posttrain.evals.passk import majority_vote, pass_at_k
from posttrain.evals.rows import ModeSamples, QuestionRow, same_questions
from posttrain.records import MODES, Mode


def summarise(
    rows: Sequence[QuestionRow],
    *,
    model: str,
    parameters: int,
    pass_at: Sequence[int],
    bootstrap: int,
    ece_bins: int,
    seed: int,
    previous: tuple[str, Sequence[QuestionRow]] | None,
) -> dict[str, Any]:
    """The content of reports/evaluate/<model>.json; `previous` is the model before it in the chain with its rows."""
    counts_RQ = resample(len(rows), draws=bootstrap, seed=seed)
    follows = [flag for row in rows for flag in row.follows]
    return {
        "model": model,
        "parameters": parameters,
        "questions": len(rows),
        "samples": len(rows[0].think.correct),
        **{
            mode: summarise_mode(rows, mode, counts_RQ, pass_at=pass_at, ece_bins=ece_bins, seed=seed) for mode in MODES
        },
        "mode_following": sum(follows) / len(follows) if follows else None,
        "budget": budget_curve(rows),
        "paired_to_previous": None if previous is None else paired_to_previous(rows, *previous, counts_RQ),
    }


def summarise_mode(
    rows: Sequence[QuestionRow],
    mode: Mode,
    counts_RQ: Floats,
    *,
    pass_at: Sequence[int],
    ece_bins: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy, lengths, habits and calibration of one mode."""
    samples = [row.mode(mode) for row in rows]
    right_Q, known_Q = _right(samples), _known(samples)
    tokens = Tokens(samples)
    flags = [[float(flag) for flag in s.correct if flag is not None] for s in samples]
    return {
        "avg": average(samples, counts_RQ, mode).to_json()
        | {"se": cluster_robust_se([values for values in flags if values])},
        "pass_at_k": {str(k): _pass_at(right_Q, known_Q, k, counts_RQ).to_json() for k in pass_at},
        "maj_at_k": _majority(rows, mode, counts_RQ, seed=seed),
        "by_domain": by_domain(rows, mode),
        "tokens_mean": tokens.mean(lambda flag: True),
        "tokens_mean_correct": tokens.mean(lambda flag: flag is True),
        "tokens_mean_wrong": tokens.mean(lambda flag: flag is False),
        "tokens_p95": tokens.percentile(95),
        "tokens_thinking": float(np.mean([n for s in samples for n in s.thinking_tokens])),
        "truncation_rate": _share(end == "length" for s in samples for end in s.finish),
        "repetition_rate": _share(end == "repeat" for s in samples for end in s.finish),
        "format_rate": _share(flag for s in samples for flag in s.well_formed),
        "language_mixing": _share(flag for s in samples for flag in s.mixed),
        "no_answer": _share(answer is None for s in samples for answer in s.answers),
        "unverified": _share(flag is None for s in samples for flag in s.correct),
        **_calibration(rows, samples, counts_RQ, ece_bins=ece_bins, seed=seed),
    }


def average(samples: Sequence[ModeSamples], counts_RQ: Floats, mode: Mode) -> Interval:
    """avg@k: the share of right samples."""
    return _required(bootstrap_ratio(_right(samples), _known(samples), counts_RQ), mode)


def question_accuracy(samples: Sequence[ModeSamples]) -> Floats:
    """Share of right samples per question, [Q]; 0 where no sample could be verified."""
    return _right(samples) / np.maximum(1.0, _known(samples))


def paired_to_previous(
    rows: Sequence[QuestionRow], name: str, previous: Sequence[QuestionRow], counts_RQ: Floats
) -> dict[str, Any]:
    """Difference in accuracy on the same questions: `difference` is in thinking mode, `no_think` without thinking."""
    same_questions(rows, previous)
    gaps = {}
    for mode in MODES:
        now, before = ([row.mode(mode) for row in some] for some in (rows, previous))
        gap = paired_difference(question_accuracy(now), question_accuracy(before), counts_RQ)
        gaps[mode] = {"difference": gap.value, "low": gap.low, "high": gap.high}
    return {"previous": name, **gaps["think"], "no_think": gaps["no_think"]}


def budget_curve(rows: Sequence[QuestionRow]) -> list[dict[str, float]]:
    """Accuracy when thinking is stopped after so many tokens; the thoughts are the same at every budget."""
    curve = []
    for place, point in enumerate(rows[0].budget):
        flags = [row.budget[place].correct for row in rows if row.budget[place].correct is not None]
        rate = wilson(sum(flag is True for flag in flags), len(flags))
        forced = _share(row.budget[place].forced for row in rows)
        curve.append(
            {"tokens": point.tokens, "accuracy": rate.value, "low": rate.low, "high": rate.high, "forced": forced}
        )
    return curve


def by_domain(rows: Sequence[QuestionRow], mode: Mode) -> dict[str, dict[str, float]]:
    """Accuracy of each domain; no interval, since a domain has few questions: read it as a direction."""
    accuracy_Q = question_accuracy([row.mode(mode) for row in rows])
    domains = np.array([row.domain for row in rows])
    return {
        domain: {"value": float(accuracy_Q[domains == domain].mean()), "questions": int((domains == domain).sum())}
        for domain in sorted(set(domains.tolist()))
    }


class Tokens:
    """Lengths of all samples with their flags."""

    def __init__(self, samples: Sequence[ModeSamples]) -> None:
        self.lengths = [n for s in samples for n in s.tokens]
        self.flags = [flag for s in samples for flag in s.correct]

    def mean(self, wanted: Any) -> float | None:
        """Mean length of the samples whose flag is wanted; None where there is none."""
        chosen = [n for n, flag in zip(self.lengths, self.flags, strict=True) if wanted(flag)]
        return sum(chosen) / len(chosen) if chosen else None

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.lengths, percent))


def _right(samples: Sequence[ModeSamples]) -> Floats:
    return np.array([sum(flag is True for flag in s.correct) for s in samples], dtype=np.float64)


def _known(samples: Sequence[ModeSamples]) -> Floats:
    return np.array([sum(flag is not None for flag in s.correct) for s in samples], dtype=np.float64)


def _share(flags: Any) -> float:
    return float(np.mean([bool(flag) for flag in flags]))


def _required(interval: Interval | None, mode: Mode) -> Interval:
    if interval is None:
        raise ValueError(f"{mode}: got no verified sample, wanted at least one")
    return interval


def _pass_at(right_Q: Floats, known_Q: Floats, k: int, counts_RQ: Floats) -> Interval:
    """Mean pass@k over the questions with at least k verified samples."""
    enough = known_Q >= k
    value_Q = np.zeros_like(right_Q)
    value_Q[enough] = pass_at_k(known_Q[enough], right_Q[enough], k=k)
    interval = bootstrap_ratio(value_Q, enough.astype(np.float64), counts_RQ)
    if interval is None:
        raise ValueError(f"evaluate.pass_at: got {k}, wanted at most the {int(known_Q.max())} samples per question")
    return interval


def _majority(rows: Sequence[QuestionRow], mode: Mode, counts_RQ: Floats, *, seed: int) -> dict[str, float]:
    right, known = [], []
    for row in rows:
        samples = row.mode(mode)
        winner = majority_vote(samples.answers, seed=seed, question_id=row.id)
        flag = False if winner is None else samples.correct[samples.answers.index(winner)]
        right.append(float(flag is True))
        known.append(float(flag is not None))
    return _required(bootstrap_ratio(right, known, counts_RQ), mode).to_json() | {"k": len(rows[0].mode(mode).answers)}


def _calibration(
    rows: Sequence[QuestionRow], samples: Sequence[ModeSamples], counts_RQ: Floats, *, ece_bins: int, seed: int
) -> dict[str, Any]:
    """Calibration of answer consistency; the bins are what the reliability diagram shows."""
    forecasts = calibration.split_half(
        [s.answers for s in samples], [s.correct for s in samples], question_ids=[row.id for row in rows], seed=seed
    )
    interval = calibration.ece_interval(forecasts, counts_RQ, bins=ece_bins)
    return {
        "ece": interval.value,
        "ece_interval": {"low": interval.low, "high": interval.high},
        "ece_equal_mass": calibration.ece(forecasts, bins=ece_bins, equal_mass=True),
        "brier": calibration.brier(forecasts),
        "auroc": calibration.auroc(forecasts),
        "reliability": [dataclasses.asdict(bar) for bar in calibration.reliability(forecasts, bins=ece_bins)],
    }
