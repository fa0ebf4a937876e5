"""Across the chain: any two models judged on the same questions, and each model's confidence beside its accuracy.

The content of reports/report.json, from the rows of the evaluations alone, with thinking on. The judge is the rule of
posttrain.evals.judge; confidence is answer consistency, split in half as in posttrain.evals.calibration. Intervals are
95 % and resample questions; nothing here covers another seed of training.

Shapes: Q questions, I and J samples of the two models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from typing import Any

from posttrain.evals.calibration import split_half
from posttrain.evals.confidence import ece_equal_mass, reliability
from posttrain.evals.intervals import Interval, resample
from posttrain.evals.judge import Judged, win_rate
from posttrain.evals.rows import QuestionRow
from posttrain.records import DataError

Rows = Mapping[str, Sequence[QuestionRow]]
"""Model -> its answers: the same questions in the same order, the models in the order of the chain."""
Wins = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Later model -> earlier model -> value, low, high and what decided."""

EVEN = Interval(0.5, 0.5, 0.5)
"""A model against itself."""


def compare_models(rows: Rows, *, draws: int, bins: int, seed: int) -> dict[str, Any]:
    """Win rates and calibration of all models. `seed` is that of the evaluations, so that the ECE is theirs too."""
    return {
        "win_rates": win_rates(rows, draws=draws, seed=seed),
        "calibration": {
            name: calibration_of(answers, draws=draws, bins=bins, seed=seed) for name, answers in rows.items()
        },
    }


def win_rates(rows: Rows, *, draws: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """How often each model but the first beats each one before it: every sample against every sample of a question.

    A sample that no verifier could judge is left out, and so is a question where one of the two has no other.
    `questions` are those compared; no question to compare raises DataError naming the two.
    """
    judged = {name: [_judged(row) for row in answers] for name, answers in rows.items()}
    counts = cache(partial(resample, draws=draws, seed=seed))
    won: dict[str, dict[str, dict[str, float]]] = {name: {} for name in list(rows)[1:]}
    for earlier, later in combinations(rows, 2):
        both = [pair for pair in zip(judged[later], judged[earlier], strict=True) if all(pair)]
        if not both:
            raise DataError(f"'{later}' against '{earlier}': got no question with a verified sample of both")
        first_QI, second_QJ = zip(*both, strict=True)
        rate = win_rate(first_QI, second_QJ, counts(len(both)))
        won[later][earlier] = {**rate.to_json(), "questions": len(both)}
    return won


def win_matrix(won: Wins) -> dict[str, dict[str, Interval]]:
    """Model -> opponent -> win rate, in the order of the chain, which the number of models before each tells.

    Both ways round: w(b, a) = 1 - w(a, b), since ties count half, and w(a, a) = 1/2.
    """
    models = sorted(set(won) | {name for row in won.values() for name in row}, key=lambda name: len(won.get(name, ())))
    matrix: dict[str, dict[str, Interval]] = {name: {name: EVEN} for name in models}
    for later, row in won.items():
        for earlier, rate in row.items():
            matrix[later][earlier] = Interval(rate["value"], rate["low"], rate["high"])
            matrix[earlier][later] = Interval(1.0 - rate["value"], 1.0 - rate["high"], 1.0 - rate["low"])
    return matrix


def calibration_of(answers: Sequence[QuestionRow], *, draws: int, bins: int, seed: int) -> dict[str, Any]:
    """ECE over bins of equal mass with its interval, and the bars of the reliability diagram over the same bins."""
    forecasts = split_half(
        [row.think.answers for row in answers],
        [row.think.correct for row in answers],
        question_ids=[row.id for row in answers],
        seed=seed,
    )
    counts_RQ = resample(len(answers), draws=draws, seed=seed)
    return {
        "forecasts": len(forecasts),
        "ece_equal_mass": ece_equal_mass(forecasts, counts_RQ, bins=bins).to_json(),
        "reliability": [dataclasses.asdict(bar) for bar in reliability(forecasts, bins=bins, equal_mass=True)],
    }


def _judged(row: QuestionRow) -> list[Judged]:
    """What the judge sees of the samples with a verdict."""
    samples = row.think
    columns = zip(samples.correct, samples.mixed, samples.tokens, strict=True)
    return [Judged(flag, not mixed, tokens) for flag, mixed, tokens in columns if flag is not None]
