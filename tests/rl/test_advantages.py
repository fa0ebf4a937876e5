import itertools
import math

import pytest
import torch

from posttrain.rl.advantages import BASELINES, SCALES, advantages, whiten


def of(rewards, baseline, scale="none", valid=None):
    rewards = torch.tensor(rewards)
    valid = torch.ones(rewards.shape, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return advantages(rewards, valid, baseline=BASELINES[baseline], scale=SCALES[scale])


def test_leave_one_out():
    """UT 3.2"""
    assert of([[1.0, 0, 0, 0]], "leave_one_out")[0].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_grpo():
    """UT 5.1, ddof 1"""
    assert of([[1.0, 0, 0, 0]], "group_mean", "group_std")[0].tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5], abs=1e-5
    )


def test_dr_grpo_is_leave_one_out_scaled():
    """UT 5.3: A = r - mean = RLOO (G-1)/G, and sums to 0."""
    rewards = [[1.0, 0.0, 0.3, 0.7], [0.1, 0.9, 0.9, 0.2]]
    dr = of(rewards, "group_mean")
    torch.testing.assert_close(dr, of(rewards, "leave_one_out") * 3 / 4)
    assert dr.sum(1).abs().max() < 1e-12
    assert of([[1.0, 0, 0, 1]], "group_mean")[0].tolist() == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exactly_zero(baseline, scale, reward):
    """UT 5.1"""
    assert of([[reward] * 7] * 3, baseline, scale).abs().max() == 0


def test_scale_and_shift_do_not_matter_with_std():
    """UT 5.1"""
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.2]])
    first = of(rewards.tolist(), "group_mean", "group_std")
    second = of((3.0 * rewards + 7.0).tolist(), "group_mean", "group_std")
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "group_std"])
def test_groups_are_independent(baseline, scale):
    """UT 5.1: permuting prompts or samples permutes advantages only."""
    rewards = [[1.0, 0.0, 0.5], [0.2, 0.2, 0.9], [0.0, 0.0, 0.0]]
    whole = of(rewards, baseline, scale)
    torch.testing.assert_close(of(rewards[::-1], baseline, scale), whole.flip(0))
    torch.testing.assert_close(of([row[::-1] for row in rewards], baseline, scale), whole.flip(1))
    torch.testing.assert_close(of(rewards[:1], baseline, scale), whole[:1])


def test_batch_statistics():
    rewards = [[1.0, 0.0], [0.0, 0.0]]
    # Mean .25; variance with ddof 1: (.5625 + 3 * .0625) / 3 = .25.
    assert of(rewards, "batch_mean", "batch_std").flatten().tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert of(rewards, "none").flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", ["none", "group_std"])
def test_a_sample_without_a_verdict_is_in_no_statistic(baseline, scale):
    full = of([[1.0, 0.0, 0.5]], baseline, scale)
    padded = of([[1.0, 0.0, 0.5, 123.0]], baseline, scale, valid=[[True, True, True, False]])
    torch.testing.assert_close(padded[:, :3], full)
    assert padded[0, 3] == 0


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_groups_with_one_verdict_or_none_teach_nothing(baseline):
    for valid in ([[True, False]], [[False, False]]):
        assert of([[1.0, 0.0]], baseline, "group_std", valid=valid).abs().max() == 0


def expected_gradient(p: float, size: int, baseline: str, scale: str) -> float:
    """E[mean of A * score] by enumeration, for one logit with success probability p; score = r - p."""
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        probability = math.prod(p if r else 1 - p for r in outcome)
        scores = torch.tensor(outcome, dtype=torch.float64) - p
        total += probability * (of([outcome], baseline, scale)[0] * scores).mean().item()
    return total


@pytest.mark.parametrize(
    ("baseline", "scale", "p", "ratio"),
    [
        ("leave_one_out", "none", 0.3, 1.0),
        ("group_mean", "none", 0.3, 0.875),
        ("none", "none", 0.3, 1.0),
        ("group_mean", "group_std", 0.1, 2.177),
        ("group_mean", "group_std", 0.5, 1.736),
    ],
)
def test_gradient_relative_to_the_truth(baseline, scale, p, ratio):
    """UT 3.2 and 5.5 at G = 8: the true gradient is p(1-p); the std makes rare successes count more."""
    assert expected_gradient(p, 8, baseline, scale) / (p * (1 - p)) == pytest.approx(ratio, abs=2e-3)


def test_whitening():
    """UT 3.7, ddof 1: over the tokens of all responses, so that the split into responses does not matter."""
    expected = [0.842364, 0.262789, -1.105153]
    for cut in (1, 2):
        row = torch.tensor([0.4705, 0.39, 0.2], dtype=torch.float64)
        white = whiten([row[:cut], row[cut:]], [True, True])
        assert torch.cat(white).tolist() == pytest.approx(expected, abs=2e-6)


def test_whitening_looks_at_trained_responses_only():
    row, other = torch.tensor([0.4705, 0.39, 0.2], dtype=torch.float64), torch.tensor([50.0, 3.0]).double()
    white = whiten([row, other], [True, False])
    assert white[0].tolist() == pytest.approx([0.842364, 0.262789, -1.105153], abs=2e-6)
    assert torch.equal(white[1], other)


def test_whitening_of_equal_advantages_is_exactly_zero():
    for value in (0.0, 0.1, 1 / 3):
        assert torch.cat(whiten([torch.full((7,), value).double()] * 3, [True] * 3)).abs().max() == 0
    assert whiten([torch.ones(3)], [False])[0].tolist() == [1.0] * 3
