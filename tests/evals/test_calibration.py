import math
import random

import numpy as np
import pytest

from posttrain.evals import calibration as cal
from posttrain.evals.intervals import resample


def forecasts(confidence: list[float], correct: list[int]) -> list[cal.Forecast]:
    pairs = zip(confidence, correct, strict=True)
    return [cal.Forecast(i, c, bool(y)) for i, (c, y) in enumerate(pairs)]


SPECIFIED = forecasts([0.95, 0.85, 0.65, 0.55], [1, 1, 0, 1])


def test_numbers_of_the_specification() -> None:
    """algorithms.md 11. ECE: (.05 + .15 + .65 + .45) / 4; Brier: (.0025 + .0225 + .4225 + .2025) / 4."""
    assert cal.ece(SPECIFIED, bins=10) == pytest.approx(0.325)
    assert cal.brier(SPECIFIED) == pytest.approx(0.1625)
    assert cal.negative_log_likelihood(SPECIFIED) == pytest.approx(0.465368, abs=1e-6)
    assert cal.ece(SPECIFIED, bins=1) == pytest.approx(0.0)


def test_constant_confidence_is_calibrated_and_useless() -> None:
    flat = forecasts([0.5] * 4, [1, 0, 1, 0])
    assert cal.ece(flat, bins=10) == 0.0
    assert cal.auroc(flat) == 0.5
    assert cal.auroc(forecasts([0.5, 0.6], [1, 1])) is None


def test_auroc_counts_pairs() -> None:
    """Right .9 and .4 against wrong .4 and .1: wins 2 + 1, ties 1, of 4 pairs."""
    assert cal.auroc(forecasts([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0])) == pytest.approx(3.5 / 4)


def test_bins_are_right_closed() -> None:
    assert cal.bin_index([0.0, 0.1, 0.1000001, 0.3, 0.7, 1.0], bins=10, equal_mass=False).tolist() == [0, 0, 1, 2, 6, 9]


def test_equal_mass_bins_do_not_part_equals_nor_depend_on_order() -> None:
    confidence = [0.5] * 6 + [0.9] * 2 + [0.1] * 4
    index = cal.bin_index(confidence, bins=3, equal_mass=True)
    assert len(set(index[:6])) == 1
    assert cal.bin_index(confidence[::-1], bins=3, equal_mass=True).tolist() == index[::-1].tolist()
    spread = cal.bin_index(np.arange(30) / 30, bins=3, equal_mass=True)
    assert np.bincount(spread).tolist() == [10, 10, 10]


def test_equal_mass_ece_by_hand() -> None:
    """Two bins of two: |(.05 + .15)| / 4 over the sure ones, |(-.65 + .45)| / 4 over the others."""
    assert cal.ece(SPECIFIED, bins=2, equal_mass=True) == pytest.approx((0.2 + 0.2) / 4)


def test_reliability_bins_add_up() -> None:
    rng = random.Random(0)
    many = forecasts([rng.random() for _ in range(500)], [rng.random() < 0.5 for _ in range(500)])
    bars = cal.reliability(many, bins=10)
    assert sum(bar.count for bar in bars) == 500
    assert sum(bar.count * abs(bar.accuracy - bar.confidence) for bar in bars) / 500 == pytest.approx(
        cal.ece(many, bins=10)
    )
    assert all(bar.low <= bar.accuracy <= bar.high for bar in bars)


def test_one_half_elects_and_the_other_votes() -> None:
    """First half elects 7, second holds it once of two; second half elects 7 or 3 by seed, first holds 7 twice."""
    answers: list[list[str | None]] = [["7", "7", "7", "3"]]
    pair = cal.split_half(answers, [[True, True, True, False]], question_ids=["q"], seed=0)
    assert pair[0] == cal.Forecast(0, 0.5, True)
    assert pair[1] in (cal.Forecast(0, 1.0, True), cal.Forecast(0, 0.0, False))


def test_missing_answers_stay_in_with_confidence_zero() -> None:
    pair = cal.split_half([[None, "7"]], [[False, True]], question_ids=["q"], seed=0)
    assert pair == [cal.Forecast(0, 0.0, False), cal.Forecast(0, 0.0, True)]
    assert cal.split_half([["7", "7"]], [[None, True]], question_ids=["q"], seed=0) == [cal.Forecast(0, 1.0, True)]
    with pytest.raises(ValueError, match="q: got 1 samples"):
        cal.split_half([["7"]], [[True]], question_ids=["q"], seed=0)


def test_split_half_is_unbiased_where_the_mode_is_not() -> None:
    """A model that guesses among ten answers, each right one time in ten, is sure of nothing: confidence .1 = accuracy.

    The mode of all eight samples, scored by themselves, looks about .27 sure.
    """
    rng = random.Random(1)
    answers: list[list[str | None]] = [[str(rng.randrange(10)) for _ in range(8)] for _ in range(3000)]
    correct: list[list[bool | None]] = [[answer == "0" for answer in row] for row in answers]
    ids = [f"q{i}" for i in range(3000)]
    found = cal.split_half(answers, correct, question_ids=ids, seed=0)
    assert np.mean([f.confidence for f in found]) == pytest.approx(0.1, abs=0.01)
    selected = np.mean([max(row.count(a) for a in row) / 8 for row in answers])
    assert selected > 0.24


def test_interval_of_ece_holds_it_apart_from_its_bias() -> None:
    rng = random.Random(2)
    many = [cal.Forecast(i // 2, 0.8, rng.random() < 0.5) for i in range(600)]
    interval = cal.ece_interval(many, resample(300, draws=2000, seed=0), bins=10)
    assert interval.value == pytest.approx(cal.ece(many, bins=10))
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 600), rel=0.15)
