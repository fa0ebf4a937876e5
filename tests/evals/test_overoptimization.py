import itertools
import math

import numpy as np
import pytest

from posttrain.evals.intervals import Interval, resample
from posttrain.evals.overoptimization import (
    LAWS,
    LEAST_DISTANCE,
    Turn,
    best_of_n,
    best_of_n_kl,
    best_of_n_peak,
    find_turn,
    fit_law,
    in_one_sentence,
    rank_weights,
    rl_peak,
)

DISTANCES = np.sqrt(np.array([0.0, 0.2, 0.5, 1.0, 2.0, 4.0, 9.0, 16.0]))


@pytest.mark.parametrize(
    ("n", "kl"),
    [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508), (1024, 5.932448), (60000, 10.0021)],
)
def test_kl_of_best_of_n(n, kl):
    """UT 1.3"""
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-5 if n == 60000 else 5e-7)


def test_kl_of_best_of_n_is_that_of_the_density_of_the_largest():
    """The largest of n uniforms has the density n u^(n-1): KL by the midpoint rule, without the formula."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 5, 16):
        assert (n * u ** (n - 1) * np.log(n * u ** (n - 1))).mean() == pytest.approx(best_of_n_kl(n), abs=1e-4)
    with pytest.raises(ValueError, match="got n=0, wanted at least 1"):
        best_of_n_kl(0)


def test_peaks_of_the_laws():
    """UT 1.3: alpha 1, beta .5."""
    assert best_of_n_peak(1.0, 0.5) == pytest.approx((1.0, 0.5))
    assert rl_peak(1.0, 0.5) == pytest.approx((2.718282, 1.359141), abs=5e-7)
    assert best_of_n_peak(1.0, -0.1) is None and best_of_n_peak(-1.0, 0.5) is None
    assert rl_peak(1.0, 0.0) is None and rl_peak(1.0, 0.001) is None


@pytest.mark.parametrize(("law", "peak"), [("best_of_n", best_of_n_peak), ("rl", rl_peak)])
def test_no_point_of_a_law_lies_above_its_peak(law, peak):
    distance, gain = peak(0.7, 0.3)
    grid = np.linspace(0.01, 12.0, 4000)
    assert LAWS[law](np.array([distance]), 0.7, 0.3)[0] == pytest.approx(gain)
    assert LAWS[law](grid, 0.7, 0.3).max() == pytest.approx(gain, abs=1e-5)


def test_weights_by_hand_and_far_out():
    """UT 1.4: gold in the order of the proxy [1, 2, 3, 0]: 4/3 for n = 2, the mean for n = 1, the last for n = N."""
    gold = [[1.0, 2.0, 3.0, 0.0]]
    assert best_of_n([[1, 2, 3, 4]], gold, at=(1, 2, 4))[0] == pytest.approx([1.5, 4 / 3, 0.0])
    assert rank_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    for n in (1, 60, 1000, 4096):
        weights = rank_weights(4096, n)
        assert weights.sum() == pytest.approx(1.0, abs=1e-10) and (weights >= 0).all()
        # By logarithms of factorials at some rank, independently of the product.
        rank = 4000
        if rank >= n:
            log = sum(
                sign * (math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1))
                for sign, a, b in ((1, rank - 1, n - 1), (-1, 4096, n))
            )
            assert weights[rank - 1] == pytest.approx(math.exp(log), rel=1e-8)


def test_the_estimator_is_the_mean_over_all_draws():
    """Enumeration of every subset; where the highest scores tie, of every one of the tied."""
    rng = np.random.default_rng(0)
    scores, values = rng.integers(0, 4, (3, 7)).astype(float), rng.normal(size=(3, 7))
    for n in range(1, 8):
        wanted = []
        for score, value in zip(scores, values, strict=True):
            means = []
            for drawn in itertools.combinations(range(7), n):
                top = max(score[i] for i in drawn)
                means.append(np.mean([value[i] for i in drawn if score[i] == top]))
            wanted.append(np.mean(means))
        assert best_of_n(scores, values, at=(n,))[:, 0] == pytest.approx(wanted)


def test_order_of_samples_and_monotone_scores_do_not_matter():
    rng = np.random.default_rng(1)
    scores, values = rng.normal(size=(2, 50)), rng.normal(size=(2, 50))
    order = rng.permutation(50)
    plain = best_of_n(scores, values, at=(1, 3, 50))
    assert best_of_n(np.exp(scores[:, order]), values[:, order], at=(1, 3, 50)) == pytest.approx(plain)
    assert (np.diff(best_of_n(scores, scores, at=(1, 2, 8, 50))) > 0).all()


def test_pools_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got n=5 with a pool of 4 samples, wanted 1 <= n <= pool"):
        best_of_n([[1, 2, 3, 4]], [[1, 2, 3, 4]], at=(5,))
    with pytest.raises(ValueError, match=r"got scores \(1, 2\) and values \(1, 3\), wanted both"):
        best_of_n([[1, 2]], [[1, 2, 3]], at=(1,))


def noisy(law, alpha, beta, *, questions=400, noise=0.3, seed=0):
    """KL and gold gained of questions that scatter around a law."""
    rng = np.random.default_rng(seed)
    gain = np.array([0.0, *LAWS[law](DISTANCES[1:], alpha, beta)])
    scatter = noise * rng.normal(size=(questions, len(DISTANCES)))
    scatter[:, 0] = 0.0
    return np.tile(DISTANCES**2, (questions, 1)), gain + scatter


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.4), (0.6, 0.4)])
def test_a_fit_recovers_the_law(law, alpha, beta):
    peak = {"best_of_n": best_of_n_peak, "rl": rl_peak}[law](alpha, beta)
    counts_RQ = resample(400, draws=500, seed=1)
    exact = fit_law(law, *noisy(law, alpha, beta, noise=0.0), counts_RQ)
    assert (exact.alpha.value, exact.beta.value) == pytest.approx((alpha, beta))
    assert (exact.peak_kl.value, exact.peak_gain.value) == pytest.approx((peak[0] ** 2, peak[1]))
    assert exact.points == int((DISTANCES > LEAST_DISTANCE).sum())
    found = fit_law(law, *noisy(law, alpha, beta), counts_RQ)
    for interval, truth in ((found.alpha, alpha), (found.beta, beta), (found.peak_gain, peak[1])):
        error = (interval.high - interval.low) / 3.92
        assert error < 0.05 and abs(interval.value - truth) < 4 * error


@pytest.mark.parametrize("law", LAWS)
def test_intervals_cover_as_often_as_they_say(law):
    counts_RQ = resample(60, draws=300, seed=1)
    covered = 0
    for seed in range(60):
        fit = fit_law(law, *noisy(law, 1.0, 0.3, questions=60, seed=seed), counts_RQ)
        covered += fit.beta.low < 0.3 < fit.beta.high
    assert 50 <= covered <= 60


def test_a_fit_scales_with_gold_and_does_not_see_the_order_of_points():
    counts_RQ = resample(400, draws=50, seed=1)
    kl, gain = noisy("rl", 1.0, 0.3)
    plain, tenfold = (fit_law("rl", kl, factor * gain, counts_RQ) for factor in (1.0, 10.0))
    backwards = fit_law("rl", kl[:, ::-1], gain[:, ::-1], counts_RQ)
    assert tenfold.alpha.value == pytest.approx(10 * plain.alpha.value)
    assert tenfold.peak_kl.value == pytest.approx(plain.peak_kl.value)
    assert backwards.beta.value == pytest.approx(plain.beta.value)


def test_a_curve_that_only_rises_has_no_peak():
    counts_RQ = resample(400, draws=200, seed=1)
    fit = fit_law("rl", *noisy("rl", 1.0, -0.1), counts_RQ)
    assert fit.beta.high < 0 and fit.peak_kl is None
    assert fit.to_json()["peak_kl"] is None and fit.to_json()["beta"]["value"] == fit.beta.value
    unsure = fit_law("rl", *noisy("rl", 1.0, 0.0, questions=400), counts_RQ)
    assert unsure.beta.low < 0 and unsure.peak_gain is None


def test_too_few_points_make_no_law():
    near = np.tile([0.0, 0.01, 0.05, 1.0, 2.0], (4, 1))
    assert fit_law("rl", near, near, resample(4, draws=10, seed=0)) is None
    with pytest.raises(ValueError, match=r"got KL \(4, 5\) and gains \(4, 4\)"):
        fit_law("rl", near, near[:, 1:], resample(4, draws=10, seed=0))


def test_a_turn_by_hand():
    """Four questions alike: up by 2, down by 1. There is nothing to draw."""
    gold = np.tile([0.5, 1.5, 2.5, 2.0, 1.5], (4, 1))
    turn = find_turn(gold, resample(4, draws=20, seed=0))
    assert turn == Turn(2, Interval(2.0, 2.0, 2.0), Interval(1.0, 1.0, 1.0), Interval(-1.0, -1.0, -1.0))
    assert turn.turned and turn.to_json()["turned"] is True
    assert find_turn(gold + 7.0, resample(4, draws=20, seed=0)) == turn
    with pytest.raises(ValueError, match=r"got gold \(1, 5\), wanted at least two questions and two points"):
        find_turn(gold[:1], resample(1, draws=20, seed=0))


def test_noise_alone_is_no_turn():
    """The highest of 12 equal points lies above the last one in every sample; a fall is found in few."""
    found, naive = 0, 0
    for seed in range(100):
        gold = np.random.default_rng(seed).normal(size=(40, 12))
        counts_RQ = resample(40, draws=200, seed=0)
        turn = find_turn(gold, counts_RQ)
        found += turn.turned
        falls = gold[:, -1] - gold[:, turn.index]
        naive += np.percentile(counts_RQ @ falls / 40, 97.5) < 0
    assert found <= 8 and naive >= 20


def test_a_real_fall_is_found_and_intervals_hold_for_all_points_at_once():
    truth = np.array([0.0, 0.5, 1.0, 0.6, 0.2])
    found = covered = 0
    for seed in range(50):
        gold = truth + np.random.default_rng(seed).normal(size=(80, 5))
        turn = find_turn(gold, resample(80, draws=300, seed=0))
        found += turn.turned and turn.index == 2
        covered += turn.fall.low <= 0.2 - truth[turn.index] <= turn.fall.high
    assert found >= 45 and covered >= 45


def test_the_sentence_says_where_to_stop():
    kl = [0.0, 1.0, 4.0, 9.0]
    down = Turn(2, Interval(0.5, 0.4, 0.6), Interval(0.2, 0.1, 0.3), Interval(-0.3, -0.4, -0.2))
    said = in_one_sentence(down, kl, unit="sd")
    assert said.startswith("Gold peaked at KL 4.00 nats (sqrt 2.00), +0.50 sd from the start: stop there.")
    assert said.endswith("At KL 9.00 nats (sqrt 3.00) it had lost 0.30 [0.20, 0.40] sd.")
    unsure = Turn(2, down.gain, down.end, Interval(-0.1, -0.3, 0.1))
    assert in_one_sentence(unsure, kl, unit="sd") == (
        "Gold did not turn down up to KL 9.00 nats (sqrt 3.00), where it is +0.20 [+0.10, +0.30] sd from the start: "
        "nothing says to stop earlier."
    )
    low = Turn(0, Interval(0.0, 0.0, 0.0), Interval(-0.1, -0.3, 0.1), Interval(-0.1, -0.4, 0.2))
    said = in_one_sentence(low, kl, unit="sd")
    assert said.startswith("Gold neither rose nor surely fell up to KL 9.00") and said.endswith("nothing was gained.")
    never = Turn(0, Interval(0.0, 0.0, 0.0), down.fall, down.fall)
    assert "highest at the start and had lost 0.30 [0.20, 0.40] sd at KL 9.00 nats" in in_one_sentence(
        never, kl, unit="sd"
    )
