import math
import random

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from posttrain.evals import calibration as cal
from posttrain.evals import confidence as con
from posttrain.evals.intervals import resample, wilson
from tests.evals.test_calibration import SPECIFIED, forecasts

EXACT = 1e-6


def random_forecasts(seed: int, *, questions: int = 100, each: int = 4, tilt: float = 1.0) -> list[cal.Forecast]:
    """Confidence c, right with probability c^tilt: calibrated at 1, too sure above."""
    rng = random.Random(seed)
    made = []
    for q in range(questions):
        for _ in range(each):
            c = rng.uniform(0.05, 0.95)
            made.append(cal.Forecast(q, c, rng.random() < c**tilt))
    return made


def test_measures_of_the_specification() -> None:
    """algorithms.md 11: confidences and accuracy both have the mean .75."""
    found = con.measure(SPECIFIED, resample(4, draws=50, seed=0), bins=10, floor=EXACT, seed=0)
    assert con.overconfidence(SPECIFIED) == pytest.approx(0.0)
    values = {
        name: found[name]["value"] for name in ("ece", "brier", "nll", "accuracy", "confidence", "overconfidence")
    }
    assert values == pytest.approx(
        {"ece": 0.325, "brier": 0.1625, "nll": 0.465368, "accuracy": 0.75, "confidence": 0.75, "overconfidence": 0.0},
        abs=1e-6,
    )
    # Two bins by mass, see test_calibration; of the three right ones .95 and .85 beat .65, .55 does not.
    two = con.measure(SPECIFIED, resample(4, draws=50, seed=0), bins=2, floor=EXACT, seed=0)
    assert two["ece_equal_mass"]["value"] == pytest.approx(0.1)
    assert two["auroc"]["value"] == pytest.approx(2 / 3)


def test_a_constant_confidence_that_equals_the_accuracy() -> None:
    """algorithms.md 11: ECE 0 and AUROC .5."""
    flat = [cal.Forecast(q, 0.5, q % 2 == 0) for q in range(20)]
    found = con.measure(flat, resample(20, draws=200, seed=0), bins=10, floor=EXACT, seed=0)
    assert found["ece"]["value"] == 0.0 and found["ece_debiased"] == 0.0
    assert found["auroc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["ece"]["low"] == 0.0 < found["ece"]["high"]


def test_agreement_with_scikit_learn() -> None:
    made = random_forecasts(1, tilt=2.0)
    c, y = [f.confidence for f in made], [f.correct for f in made]
    found = con.measure(made, resample(100, draws=50, seed=0), bins=10, floor=EXACT, seed=0)
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(y, c))
    assert found["auroc"]["value"] == pytest.approx(cal.auroc(made))
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(y, c))
    assert found["nll"]["value"] == pytest.approx(log_loss(y, c))


def test_measures_do_not_depend_on_the_order_of_forecasts() -> None:
    made = random_forecasts(2)
    mixed = random.Random(0).sample(made, len(made))
    counts_RQ = resample(100, draws=100, seed=0)
    first, second = (con.measure(some, counts_RQ, bins=10, floor=EXACT, seed=0) for some in (made, mixed))
    for name in ("ece", "ece_equal_mass", "brier", "nll", "auroc", "overconfidence"):
        assert second[name] == pytest.approx(first[name]), name


def test_swapped_labels_mirror_auroc() -> None:
    made = random_forecasts(3)
    swapped = [cal.Forecast(f.question, f.confidence, not f.correct) for f in made]
    counts_RQ = resample(100, draws=100, seed=0)
    first, second = (con.measure(s, counts_RQ, bins=10, floor=EXACT, seed=0)["auroc"] for s in (made, swapped))
    assert second["value"] == pytest.approx(1.0 - first["value"])
    assert (second["low"], second["high"]) == pytest.approx((1.0 - first["high"], 1.0 - first["low"]))


def test_nll_is_finite_where_certainty_was_wrong() -> None:
    sure = forecasts([1.0, 0.0], [0, 0])
    found = con.measure(sure, resample(2, draws=10, seed=0), bins=10, floor=0.125, seed=0)
    assert found["nll"]["value"] == pytest.approx(-(math.log(0.125) + math.log(0.875)) / 2)
    assert math.isinf(cal.negative_log_likelihood(sure))


def test_the_draws_are_those_of_calibration() -> None:
    made = random_forecasts(4)
    counts_RQ = resample(100, draws=300, seed=1)
    low, high = np.percentile(con.ece_draws(made, counts_RQ, bins=10), [2.5, 97.5])
    interval = cal.ece_interval(made, counts_RQ, bins=10)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    # One draw by hand: question 0 twice, nothing of question 1.
    two = [cal.Forecast(0, 0.9, False), cal.Forecast(1, 0.2, True)]
    assert con.ece_draws(two, np.array([[2.0, 0.0]]), bins=10).tolist() == pytest.approx([0.9])


def test_what_noise_adds_is_taken_out() -> None:
    """Calibrated forecasts of 100 questions: an ECE near .07, of which most is noise."""
    found = [con.measure(random_forecasts(s, each=1), resample(100, draws=300, seed=s), bins=10, floor=EXACT, seed=0)
             for s in range(20)]  # fmt: skip
    plain = np.mean([f["ece"]["value"] for f in found])
    assert np.mean([f["ece_debiased"] for f in found]) < 0.65 * plain


def test_difference_by_hand_and_its_signs() -> None:
    """Accuracy .8 on 500 questions; said .8 before and .95 after: worse by .15, but for what noise adds to each."""
    right = [q % 5 != 0 for q in range(500)]
    before = [cal.Forecast(q, 0.8, y) for q, y in enumerate(right)]
    after = [cal.Forecast(q, 0.95, y) for q, y in enumerate(right)]
    counts_RQ = resample(500, draws=2000, seed=0)
    worse = con.ece_difference(after, before, counts_RQ, bins=10)
    better = con.ece_difference(before, after, counts_RQ, bins=10)
    assert 0.1 < worse.low < worse.value < worse.high < 0.2 and worse.value == pytest.approx(0.15, abs=0.02)
    assert (better.value, better.low, better.high) == pytest.approx((-worse.value, -worse.high, -worse.low))
    same = con.ece_difference(after, after, counts_RQ, bins=10)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_difference_of_two_calibrated_models_is_told_from_nothing() -> None:
    """One spreads over ten bins, the other over one: the plain difference is noise, the corrected one holds 0."""
    held = 0
    for seed in range(20):
        rng = random.Random(seed)
        spread = random_forecasts(seed, each=1)
        flat = [cal.Forecast(q, 0.5, rng.random() < 0.5) for q in range(100)]
        gap = con.ece_difference(spread, flat, resample(100, draws=300, seed=seed), bins=10)
        held += gap.low <= 0.0 <= gap.high
    assert held >= 18


def test_bars_are_as_of_one_forecast_per_question() -> None:
    once = [cal.Forecast(q, 0.7, q < 6) for q in range(10)]
    (bar,) = con.reliability(once * 8, bins=10)
    expected = wilson(6, 10)
    assert (bar.accuracy, bar.low, bar.high, bar.count) == pytest.approx((0.6, expected.low, expected.high, 80))
    assert con.reliability(once, bins=10) == cal.reliability(once, bins=10)


def test_temperature_by_hand() -> None:
    """Said .9, right 3 of 4: sigmoid(logit(.9) / T) = .75 where T = ln 9 / ln 3 = 2."""
    sure = forecasts([0.9] * 4, [1, 1, 1, 0])
    assert con.fit_temperature(sure, floor=EXACT) == pytest.approx(2.0, abs=1e-4)
    assert [f.confidence for f in con.scaled(sure, 2.0, floor=EXACT)] == pytest.approx([0.75] * 4)
    # Said .75, right 9 of 10: the other way round.
    shy = forecasts([0.75] * 10, [1] * 9 + [0])
    assert con.fit_temperature(shy, floor=EXACT) == pytest.approx(0.5, abs=1e-4)
    # Sure and mostly wrong: nothing is better than saying one half.
    assert con.fit_temperature(forecasts([0.9] * 4, [0, 0, 0, 1]), floor=EXACT) == pytest.approx(100.0, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_temperature_never_raises_nll_where_it_was_fitted(seed: int) -> None:
    made = random_forecasts(seed, tilt=random.Random(seed).uniform(0.2, 4.0))
    best = con.fit_temperature(made, floor=EXACT)
    least = con.nll(made, best, floor=EXACT)
    assert least <= con.nll(made, 1.0, floor=EXACT)
    assert least <= min(con.nll(made, t, floor=EXACT) for t in np.geomspace(0.05, 20, 60)) + 1e-7
    assert least == pytest.approx(cal.negative_log_likelihood(con.scaled(made, best, floor=EXACT)))


def test_temperature_changes_no_order() -> None:
    """algorithms.md 11: the argmax stays, and with it AUROC and the side of one half."""
    made = [f for f in random_forecasts(6) if f.confidence != 0.5]
    for temperature in (0.3, 1.0, 7.0):
        moved = con.scaled(made, temperature, floor=EXACT)
        assert np.argsort([f.confidence for f in moved]).tolist() == np.argsort([f.confidence for f in made]).tolist()
        assert cal.auroc(moved) == cal.auroc(made)
        assert [f.confidence > 0.5 for f in moved] == [f.confidence > 0.5 for f in made]


def test_repair_is_judged_on_the_other_half() -> None:
    """Said .9 everywhere, right 3 of 4 in both halves: T = 2 leaves no gap of the .15."""
    made = [cal.Forecast(q, 0.9, q % 4 != 0) for q in range(80)]
    first = range(40)
    found = con.repair(made, resample(80, draws=500, seed=0), fitted_on=first, bins=10, floor=EXACT)
    assert found is not None
    assert found["temperature"] == pytest.approx(2.0, abs=1e-4)
    assert found["ece"] == pytest.approx({"before": 0.15, "after": 0.0}, abs=1e-4)
    assert found["nll"]["after"] < found["nll"]["before"] == pytest.approx(-0.75 * math.log(0.9) - 0.25 * math.log(0.1))
    assert found["difference"]["value"] < 0.0
    # Only the fit half decides T.
    other = [f if f.question in first else cal.Forecast(f.question, 0.2, True) for f in made]
    changed = con.repair(other, resample(80, draws=10, seed=0), fitted_on=first, bins=10, floor=EXACT)
    assert changed is not None and changed["temperature"] == found["temperature"]
    assert con.repair(made[:40], resample(80, draws=10, seed=0), fitted_on=first, bins=10, floor=EXACT) is None


def test_halves_are_drawn_by_seed() -> None:
    half = con.fit_half(11, seed=3)
    assert len(half) == 5 and half <= set(range(11))
    assert half == con.fit_half(11, seed=3) != con.fit_half(11, seed=4)
