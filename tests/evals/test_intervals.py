import math

import numpy as np
import pytest
from scipy import stats

from posttrain.evals import intervals as iv


def test_wilson_numbers() -> None:
    """algorithms.md 12.3."""
    half = iv.wilson(15, 30)
    assert (half.low, half.high) == pytest.approx((0.3315, 0.6685), abs=5e-5)
    none = iv.wilson(0, 10)
    assert (none.low, none.high) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert iv.wilson(10, 10).high == 1.0
    assert iv.wilson(0, 0) == iv.Interval(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(1, 7), (3, 3), (40, 41), (250, 500)])
def test_wilson_agrees_with_scipy(successes: int, trials: int) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    ours = iv.wilson(successes, trials)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_cluster_standard_errors() -> None:
    """algorithms.md 12.3, two clusters [1, 1] and [0, 0], mean .5, e = +-.5.

    Naive: sqrt((4 * .25 / 3) / 4) = .2887. CR0: sqrt(1^2 + 1^2) / 4 = .3536. Miller: sqrt(.0833 + (.5 + .5) / 16).
    """
    clusters = [[1.0, 1.0], [0.0, 0.0]]
    assert iv.naive_se([1, 1, 0, 0]) == pytest.approx(0.2887, abs=5e-5)
    assert iv.cluster_robust_se(clusters) == pytest.approx(0.3536, abs=5e-5)
    assert iv.miller_se(clusters) == pytest.approx(0.3819, abs=5e-5)


def test_miller_of_single_members_is_the_naive_error() -> None:
    assert iv.miller_se([[1.0], [0.0], [0.5]]) == pytest.approx(iv.naive_se([1, 0, 0.5]))


def test_planned_standard_error() -> None:
    """algorithms.md 12.2 and 12.3: p in {0, .5, 1}, n = 30, K = 16; and AIME, n = 30, p = .5, K = 1: 9.13 points."""
    assert iv.planned_se([0, 0.5, 1], questions=30, samples=16) == pytest.approx(0.075691, abs=1e-6)
    assert iv.planned_se([0.5], questions=30, samples=1) == pytest.approx(0.0913, abs=5e-5)
    assert iv.minimum_detectable_effect(0.1) == pytest.approx(0.28)


def test_mcnemar_and_holm() -> None:
    """2 * (C(10,0) + C(10,1) + C(10,2)) / 1024 = 112 / 1024; Holm by hand: 3*.01, 2*.02, max(.04, .04)."""
    assert iv.mcnemar_exact(8, 2) == pytest.approx(0.109375)
    assert iv.mcnemar_exact(8, 2) == pytest.approx(stats.binomtest(2, 10).pvalue)
    assert iv.mcnemar_exact(3, 3) == 1.0
    assert iv.mcnemar_exact(0, 0) == 1.0
    assert iv.holm([0.01, 0.04, 0.02]) == pytest.approx([0.03, 0.04, 0.04])
    assert iv.holm([0.9, 0.8]) == [1.0, 1.0]


def test_draws_hold_every_question_once_on_average() -> None:
    counts = iv.resample(50, draws=4000, seed=3)
    assert counts.shape == (4000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.06)
    assert (counts == iv.resample(50, draws=4000, seed=3)).all()
    assert (counts != iv.resample(50, draws=4000, seed=4)).any()


def test_slices_of_the_draws_do_not_change_them() -> None:
    """More questions than one slice holds draws for: the result is still one row per draw."""
    counts = iv.resample(30_000, draws=300, seed=0)
    assert (counts.sum(axis=1) == 30_000).all()
    assert len({row.tobytes() for row in counts}) == 300


def test_bootstrap_agrees_with_theory_and_scipy() -> None:
    """200 values: the percentile interval is the mean +- 1.96 sd / sqrt(n), and that of scipy."""
    values = np.random.default_rng(0).random(200)
    ours = iv.bootstrap_mean(values, iv.resample(200, draws=20_000, seed=1))
    half = 1.96 * values.std() / math.sqrt(200)
    assert (ours.low, ours.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_clustered_interval_is_wider_than_that_of_pooled_samples() -> None:
    """Questions that are all right or all wrong: 16 samples each say no more than one."""
    right_Q = np.array([16.0] * 30 + [0.0] * 30)
    clustered = iv.bootstrap_ratio(right_Q, np.full(60, 16.0), iv.resample(60, draws=5000, seed=0))
    pooled = iv.wilson(480, 960)
    assert clustered is not None
    assert clustered.high - clustered.low == pytest.approx(4 * (pooled.high - pooled.low), rel=0.05)


def test_ratio_weighs_by_sample_and_leaves_out_empty_draws() -> None:
    counts = iv.resample(2, draws=1000, seed=0)
    ratio = iv.bootstrap_ratio([30.0, 0.0], [3.0, 0.0], counts)
    assert ratio == iv.Interval(10.0, 10.0, 10.0)
    assert iv.bootstrap_ratio([0.0, 0.0], [0.0, 0.0], counts) is None


def test_coverage_of_the_interval() -> None:
    """About 95 of 100 intervals hold the truth."""
    rng = np.random.default_rng(5)
    counts = iv.resample(80, draws=1000, seed=6)
    held = 0
    for _ in range(300):
        interval = iv.bootstrap_mean(rng.binomial(8, rng.beta(2, 2, size=80)) / 8, counts)
        held += interval.low <= 0.5 <= interval.high
    assert 0.90 < held / 300 < 0.99


def test_pairs_cancel_difficulty() -> None:
    """The same gain on easy and on hard questions: the paired interval has no width, the difference of two has."""
    hard, counts = np.linspace(0, 0.8, 40), iv.resample(40, draws=500, seed=0)
    gap = iv.paired_difference(hard + 0.1, hard, counts)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert iv.paired_difference(hard, hard + 0.1, counts).value == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="the same questions"):
        iv.paired_difference(hard, hard[1:], counts)
