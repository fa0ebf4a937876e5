"""UT 1.5, 3.1 and 5.5: the toys' numbers, and that what they show is so for our advantages and aggregates."""

import itertools
import math

import numpy as np
import pytest
import torch

from posttrain.evals.intervals import resample
from posttrain.evals.overoptimization import best_of_n, best_of_n_kl, fit_law
from posttrain.losses.reduce import AGGREGATES
from posttrain.rl.advantages import BASELINES, SCALES
from studies.toys import __main__ as tables
from studies.toys import baseline, difficulty, length, overoptimization, wrong_sign

GRPO = {"baseline": BASELINES["group_mean"], "scale": SCALES["group_std"]}
DR_GRPO = {"baseline": BASELINES["group_mean"], "scale": SCALES["none"]}
DIFFICULTIES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


@pytest.mark.parametrize(("p", "none", "mean"), [(0.5, 0.0625, 0.0), (0.1, 0.0729, 0.0576), (0.9, 0.0009, 0.0576)])
def test_a_baseline_is_unbiased_and_need_not_help(p, none, mean):
    """UT 3.1"""
    assert baseline.moments(p, 0.0)[1] == pytest.approx(none)
    assert baseline.moments(p, p)[1] == pytest.approx(mean)
    assert baseline.moments(p, baseline.best_baseline(p))[1] == pytest.approx(0.0, abs=1e-12)
    for b in (-3.0, 0.0, 0.2, p, 1.0, 50.0):
        assert baseline.moments(p, b)[0] == pytest.approx(p * (1 - p))


@pytest.mark.parametrize(
    ("size", "weights", "silent", "limit"),
    [
        (8, (2.407, 2.177, 1.895, 1.736, 1.895, 2.177, 2.407), 0.851, 2.475),
        # .98^64 + .02^64 = .27445.
        (64, (5.818, 3.229, 2.267, 1.969, 2.267, 3.229, 5.818), 0.2745, 7.875),
    ],
)
def test_difficulty_bias(size, weights, silent, limit):
    """UT 5.5: the table."""
    assert [difficulty.weight(p, size=size, **GRPO) for p in DIFFICULTIES] == pytest.approx(weights, abs=5e-4)
    assert [difficulty.weight(p, size=size, **DR_GRPO) for p in DIFFICULTIES] == pytest.approx([1 - 1 / size] * 7)
    assert difficulty.chance_of_no_signal(0.02, size=size) == pytest.approx(silent, abs=3e-4)
    # p -> 0: a group has one success or none, and the weight is (1 - 1/G) sqrt(G).
    assert difficulty.weight(1e-7, size=size, **GRPO) == pytest.approx(limit, abs=5e-4)
    assert limit == pytest.approx((1 - 1 / size) * math.sqrt(size), abs=5e-4)


def test_the_limit_of_large_groups():
    """UT 5.5: 1/sd at .02 is 7.143; a group of 512 is near it."""
    assert difficulty.limit_weight(0.02) == pytest.approx(7.143, abs=5e-4)
    assert difficulty.weight(0.02, size=512, **GRPO) == pytest.approx(7.143, rel=0.05)


def test_counting_successes_is_enumerating_groups():
    for p, axes in itertools.product((0.1, 0.6), (GRPO, DR_GRPO)):
        total = 0.0
        for outcome in itertools.product([0.0, 1.0], repeat=4):
            rewards = torch.tensor([outcome], dtype=torch.float64)
            spread = rewards.std() + 1e-6 if axes is GRPO else 1.0
            chance = math.prod(p if r else 1 - p for r in outcome)
            total += chance * float(((rewards - rewards.mean()) / spread * (rewards - p)).mean())
        assert difficulty.expected_gradient(p, size=4, **axes) == pytest.approx(total)


def test_grpo_goes_the_wrong_way():
    """UT 5.5: at q = .5 the truth is .00375, Dr. GRPO .00328, GRPO -.00905."""
    found = [wrong_sign.expected_gradient(0.5, wrong_sign.group_advantages(8, **axes)) for axes in (DR_GRPO, GRPO)]
    assert [wrong_sign.true_gradient(0.5), *found] == pytest.approx([0.00375, 0.00328, -0.00905], abs=5e-6)
    assert all(wrong_sign.true_gradient(q) > 0 for q in (0.001, 0.3, 0.999))


def test_dr_grpo_converges_to_the_better_policy_and_grpo_to_the_worse():
    """UT 5.5: mean reward .2850 and .2775, from .28125."""
    ends = {}
    for name, axes in (("dr_grpo", DR_GRPO), ("grpo", GRPO)):
        ends[name] = wrong_sign.train(wrong_sign.group_advantages(8, **axes), lr=40.0, steps=400)
    assert ends["dr_grpo"] == pytest.approx(0.995, abs=5e-4) and ends["grpo"] < 0.005
    rewards = [wrong_sign.mean_reward(q) for q in (0.5, ends["dr_grpo"], ends["grpo"])]
    assert rewards == pytest.approx([0.28125, 0.2850, 0.2775], abs=5e-5)


def test_length_drift_in_closed_form():
    """UT 5.5: E[score / L] = -.155843 at c = .9, times p(1-p) = 1/4; checked against the series of the lengths."""
    assert length.sequence_mean_drift(0.9) == pytest.approx(0.155843 / 4, abs=1e-6)
    assert length.sequence_mean_drift(0.9) == pytest.approx(0.038961, abs=1e-6)
    series = sum(0.1 * 0.9 ** (n - 1) * ((n - 1) * 0.1 - 0.9) / n for n in range(1, 1000))
    assert length.sequence_mean_drift(0.9) == pytest.approx(-0.25 * series)


@pytest.mark.parametrize(
    ("steps", "wrong", "right"),
    [(0, 10, 10), (50, 36.0, 1.78), (100, 73.6, 1.18), (200, 167.9, 1.06), (400, 398.7, 1.02)],
)
def test_wrong_answers_grow_and_right_ones_shrink(steps, wrong, right):
    """UT 5.5: gradient flow."""
    assert length.flow(0.9, lr=1.0, steps=steps) == pytest.approx((wrong, right), abs=0.05)


def test_the_residual_of_the_token_mean_vanishes_with_the_sequences():
    """UT 5.5: .00273 within a group of 8, twelve times smaller than sequence_mean."""
    within, eight, many = (length.token_mean_drift(0.9, group=8, sequences=n) for n in (8, 64, 512))
    assert within == pytest.approx(0.00273, abs=1e-5)
    assert 0.875 * length.sequence_mean_drift(0.9) / within == pytest.approx(12.5, abs=0.1)
    assert within / eight == pytest.approx(8, rel=0.15) and eight / many == pytest.approx(8, rel=0.15)
    # One sequence shares its denominator with nobody: token_mean is sequence_mean.
    assert length.token_mean_drift(0.9, group=8, sequences=1) == pytest.approx(0.875 * length.sequence_mean_drift(0.9))


@pytest.mark.parametrize(
    ("name", "drift", "groups", "per_batch", "largest_error"),
    [
        ("sequence_mean", 0.0341, 20000, 200, 3e-4),
        ("token_mean", 0.0027, 1500, 1, 4e-4),
        ("token_mean", 0.0003, 6400, 8, 2e-4),
        ("constant", 0.0, 20000, 200, 1e-4),
        # The constant is 10 here.
        ("sequence_sum", 0.0, 20000, 200, 1e-3),
    ],
)
def test_sampled_length_drift_of_our_aggregates(name, drift, groups, per_batch, largest_error):
    """UT 5.5: Monte Carlo at G = 8, by autograd through advantages, loss and aggregate; four standard errors."""
    axes = {"group": 8, "groups": groups, "per_batch": per_batch}
    mean, error = length.sampled_drift(0.9, AGGREGATES[name], **axes, seed=1)
    assert error < largest_error
    assert mean == pytest.approx(drift, abs=4 * error)


@pytest.mark.parametrize(
    ("n", "gold"),
    [(1, -0.25), (4, 0.4090), (16, 0.6970), (64, 0.8202), (256, 0.8558), (1024, 0.8376), (4096, 0.7827),
     (16384, 0.7007)],
)  # fmt: skip
def test_gold_of_best_of_n_by_a_proxy_that_overvalues(n, gold):
    """UT 1.5"""
    assert overoptimization.best_of_n(n)[1] == pytest.approx(gold, abs=5e-5)


def test_the_proxy_only_rises():
    """UT 1.5: from 0 to 5.6163."""
    proxies = [overoptimization.best_of_n(4**power)[0] for power in range(8)]
    assert proxies == sorted(proxies)
    assert (proxies[0], proxies[-1]) == pytest.approx((0.0, 5.6163), abs=5e-5)
    # The largest of two standard normals has mean 1 / sqrt(pi).
    assert overoptimization.largest_of(2) == pytest.approx((1.0 / math.sqrt(math.pi), 1.0))


def test_a_tilted_policy_follows_the_law():
    """UT 1.5: KL 4 nats at the peak, gain 1, back to 0 at d = 4; alpha 1 and beta 1/4 are found."""
    assert overoptimization.tilted(2.0) == (4.0, 1.0) and overoptimization.tilted(4.0)[1] == 0.0
    distances = np.array([[0.0, 0.5, 1.0, 2.0, 3.0, 4.0]] * 2)
    fit = fit_law("best_of_n", distances**2, overoptimization.tilted(distances)[1], resample(2, draws=5, seed=0))
    assert (fit.alpha.value, fit.beta.value, fit.peak_kl.value) == pytest.approx((1.0, 0.25, 4.0))


def test_the_estimator_finds_the_exact_curve_from_pools():
    """Up to n = 4096, the pool itself, where a question has a single draw; within four standard errors."""
    proxy, gold = overoptimization.sample(300, 4096, seed=3)
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    for values, place in ((proxy, 0), (gold, 1)):
        curve_QD = best_of_n(proxy, values, at=sizes)
        exact = np.array([overoptimization.best_of_n(n)[place] for n in sizes])
        errors = curve_QD.std(0, ddof=1) / math.sqrt(len(curve_QD))
        assert (np.abs(curve_QD.mean(0) - exact) < 4 * errors).all()
    assert best_of_n_kl(4096) == pytest.approx(7.318, abs=5e-4)


def test_the_tables_can_be_printed():
    for toy in (tables.baselines, tables.difficulties, tables.wrong_signs, tables.length_flow, tables.best_of_many):
        assert toy().startswith("| ")
