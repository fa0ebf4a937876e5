import math

import pytest
import torch

from posttrain.engine.policy import entropy
from posttrain.losses.policy import (
    CLIPS,
    CORRECTIONS,
    RATIOS,
    cispo_clip,
    dual_clip,
    no_clip,
    positives_only,
    ppo_clip,
    reinforce,
    sequence_ratio,
    squared_log_ratio,
    token_ratio,
)
from posttrain.losses.reduce import Denominators, sequence_mean, sequence_sum

CLIP = {"low": 0.2, "high": 0.2, "dual": 3.0}


def one_token(clip, advantage: float, ratio: float) -> tuple[float, float, float]:
    """(loss, d loss / d log pi, clipped) of a single token with probability ratio `ratio`."""
    policy = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0 - math.log(ratio)]], dtype=torch.float64)
    mask = torch.ones(1, 1)
    loss, clipped = clip(token_ratio(policy, old, mask), policy, torch.tensor([[advantage]]).double(), **CLIP)
    loss.sum().backward()
    return loss.item(), policy.grad.item(), clipped.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (1.0, 1.5, -1.2, 0.0, 1.0),
        (-1.0, 1.5, 1.5, 1.5, 0.0),
        (-1.0, 0.5, 0.8, 0.0, 1.0),
        (1.0, 0.5, -0.5, -0.5, 0.0),
        (1.0, 1.0, -1.0, -1.0, 0.0),
        (-1.0, 5.0, 5.0, 5.0, 0.0),
    ],
)
def test_ppo_clip(advantage, ratio, loss, gradient, clipped):
    """UT 3.4: the gradient is zero exactly when (A>0, rho>1+e) or (A<0, rho<1-e)."""
    assert one_token(ppo_clip, advantage, ratio) == pytest.approx((loss, gradient, clipped))


def test_dual_clip_bounds_bad_tokens():
    """UT 3.4: c=3 gives 3 instead of 5, and no gradient; elsewhere it is PPO's clip."""
    assert one_token(dual_clip, -1.0, 5.0) == pytest.approx((3.0, 0.0, 1.0))
    for advantage, ratio in [(1.0, 1.5), (-1.0, 1.5), (-1.0, 0.5), (1.0, 9.0)]:
        assert one_token(dual_clip, advantage, ratio) == one_token(ppo_clip, advantage, ratio)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    """UT 5.8: rho 1.5, e_hi .2, A 1, lp -1: loss 1.2, gradient -1.2; PPO's would be 0."""
    assert one_token(cispo_clip, 1.0, 1.5) == pytest.approx((1.2, -1.2, 1.0))
    # No lower bound: rho .5 stays .5.
    assert one_token(cispo_clip, 1.0, 0.5) == pytest.approx((0.5, -0.5, 0.0))


def test_clip_higher():
    """UT 5.6: probability .01 can rise to .012 at most with e=.2, to .0128 with .28."""
    for high, bound in [(0.2, 0.012), (0.28, 0.0128)]:
        for probability, has_gradient in [(bound * 0.999, True), (bound * 1.001, False)]:
            policy = torch.tensor([[math.log(probability)]], dtype=torch.float64, requires_grad=True)
            old = torch.tensor([[math.log(0.01)]], dtype=torch.float64)
            loss, _ = ppo_clip(policy - old, policy, torch.ones(1, 1).double(), low=0.2, high=high, dual=3.0)
            loss.sum().backward()
            assert bool(policy.grad.item() != 0) is has_gradient


def test_sequence_ratio_of_gspo():
    """UT 5.7: log-ratios [.01, -.02, .04] give s = 1.010050; A>0 beyond e_hi 4e-4: value 1.0004, gradient 0."""
    old = torch.zeros(1, 4, dtype=torch.float64)
    policy = torch.tensor([[0.01, -0.02, 0.04, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    log_ratio = sequence_ratio(policy, old, mask)
    assert log_ratio.exp()[0, 0].item() == pytest.approx(1.010050, abs=1e-6)
    counts = Denominators(sequences=1, tokens=3, max_tokens=3)
    loss, _ = ppo_clip(log_ratio, policy, torch.ones(1, 4).double(), low=3e-4, high=4e-4, dual=3.0)
    total = sequence_mean(loss, mask, counts)
    total.backward()
    assert total.item() == pytest.approx(-1.0004)
    assert policy.grad.abs().max() == 0
    # A<0: not clipped from above; each token has gradient -s A / L.
    policy.grad = None
    loss, _ = ppo_clip(
        sequence_ratio(policy, old, mask), policy, -torch.ones(1, 4).double(), low=3e-4, high=4e-4, dual=3.0
    )
    sequence_mean(loss, mask, counts).backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]).double() * math.exp(0.01) / 3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("clip", CLIPS)
def test_on_policy_every_ratio_and_clip_has_the_gradient_of_reinforce(ratio, clip):
    torch.manual_seed(1)
    policy = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(5) < torch.tensor([[5], [2], [3]])).double()
    advantages = torch.tensor([[1.5], [-0.5], [0.25]], dtype=torch.float64).expand(3, 5)
    counts = Denominators(sequences=3, tokens=10, max_tokens=5)
    log_ratio = RATIOS[ratio](policy, policy.detach(), mask)
    torch.testing.assert_close(log_ratio.detach(), torch.zeros(3, 5).double())
    loss, clipped = CLIPS[clip](log_ratio, policy, advantages, **CLIP)
    sequence_mean(loss, mask, counts).backward()
    got, policy.grad = policy.grad, None
    sequence_mean(reinforce(policy, advantages), mask, counts).backward()
    torch.testing.assert_close(got, policy.grad)
    assert clipped.abs().max() == 0


def test_no_ratio_ignores_a_stale_policy():
    assert one_token(
        lambda log_ratio, policy, advantages, **numbers: no_clip(
            RATIOS["none"](policy, policy - 3.0, torch.ones(1, 1)), policy, advantages, **numbers
        ),
        2.0,
        1.5,
    ) == pytest.approx((-2.0, -2.0, 0.0))


def test_squared_log_ratio_of_kimi():
    """UT 9.2: coefficients of grad S, for sequences of several tokens; at S = S_old they are r - mean."""
    lengths = torch.tensor([[1], [2], [3], [4]])
    mask = (torch.arange(4) < lengths).double()
    advantages = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=torch.float64)[:, None].expand(4, 4)
    counts = Denominators(sequences=4, tokens=10, max_tokens=4)
    for drift, coefficients in [
        ([0.1, -0.2, 0.0, 0.3], [0.49, -0.48, -0.5, 0.47]),
        ([0.0] * 4, [0.5, -0.5, -0.5, 0.5]),
    ]:
        old = torch.full((4, 4), -1.0, dtype=torch.float64)
        policy = (old + torch.tensor(drift)[:, None] / lengths).requires_grad_()
        loss = sequence_sum(squared_log_ratio(policy, old, mask, advantages, tau=0.1), mask, counts)
        loss.backward()
        torch.testing.assert_close(
            policy.grad, -torch.tensor(coefficients)[:, None].double() * mask / 4, rtol=1e-5, atol=1e-7
        )


def test_kimis_loss_is_the_squared_surrogate():
    """UT 9.2: mean (r - mean r - tau log ratio)^2 = .23535, and its gradient is 2 tau times that of our loss."""
    tau, drift = 0.1, torch.tensor([[0.1], [-0.2], [0.0], [0.3]], dtype=torch.float64)
    rewards, old = torch.tensor([[1.0], [0.0], [0.0], [1.0]]).double(), torch.full((4, 1), -1.0).double()
    policy = (old + drift).requires_grad_()
    surrogate = (rewards - rewards.mean() - tau * (policy - old)).square().mean()
    assert surrogate.item() == pytest.approx(0.23535)
    (wanted,) = torch.autograd.grad(surrogate, policy)
    mask, counts = torch.ones(4, 1), Denominators(sequences=4, tokens=4, max_tokens=1)
    loss = sequence_sum(squared_log_ratio(policy, old, mask, rewards - rewards.mean(), tau=tau), mask, counts)
    (got,) = torch.autograd.grad(loss, policy)
    torch.testing.assert_close(2 * tau * got, wanted)


def test_kimis_optimum():
    """UT 9.2: at pi* ~ ref exp(r / tau) the loss with r - tau log Z has no gradient; tau log Z tends to the mean."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    for tau, expected in [(0.1, 0.930690), (1.0, 0.620115), (10.0, 0.512495)]:
        assert tau * (rewards / tau).exp().mean().log().item() == pytest.approx(expected, abs=1e-6)
    tau, reference = 0.5, torch.tensor([0.5, 0.5], dtype=torch.float64)
    two = torch.tensor([1.0, 0.0], dtype=torch.float64)
    normaliser = (reference * (two / tau).exp()).sum()
    best = reference * (two / tau).exp() / normaliser
    assert best.tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)
    logits = best.log().requires_grad_()
    policy, mask = torch.log_softmax(logits, -1)[:, None], torch.ones(2, 1)
    advantages = (two - tau * normaliser.log())[:, None]
    loss = squared_log_ratio(policy, reference.log()[:, None], mask, advantages, tau=tau)
    (reference[:, None] * loss).sum().backward()
    assert logits.grad.abs().max() < 1e-12


def test_squared_log_ratio_is_kimis_loss():
    """-A S + tau/2 (S - S_old)^2, averaged over the samples."""
    policy = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], dtype=torch.float64)
    old = torch.tensor([[-1.5, -1.0], [-1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    advantages = torch.tensor([[0.5, 0.5], [-0.5, -0.5]], dtype=torch.float64)
    # S = [-3, -.5], S - S_old = [-.5, .5]: (1.5 + .05*.25*2/2... ) with tau .4: tau/2 (.25) = .05 each.
    expected = ((0.5 * 3.0 + 0.05) + (-0.5 * 0.5 + 0.05)) / 2
    loss = sequence_sum(
        squared_log_ratio(policy, old, mask, advantages, tau=0.4),
        mask,
        Denominators(sequences=2, tokens=3, max_tokens=2),
    )
    assert loss.item() == pytest.approx(expected)


def test_positives_only_ignores_bad_samples():
    """UT 6: rewards [1,0,0,1] without a baseline: weights [1,0,0,1]."""
    policy = torch.full((4, 1), -1.0, requires_grad=True)
    positives_only(policy, torch.tensor([[1.0], [0.0], [0.0], [1.0]])).sum().backward()
    assert (-policy.grad).flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert positives_only(policy, torch.tensor([[1.0], [-5.0], [0.0], [1.0]])).flatten().tolist() == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]


def test_truncated_importance_weight():
    """UT 5.9: lp_old -1, lp_roll -2: e -> 2; equal log-probabilities: exactly 1."""
    old, sampled, mask = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2)
    assert CORRECTIONS["truncated"](old, sampled, mask, cap=2.0).tolist() == [[2.0, 1.0]]
    assert CORRECTIONS["truncated"](old, sampled, mask, cap=8.0)[0, 0].item() == pytest.approx(math.e)


def test_masked_weights():
    old, mask = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    sampled = -torch.tensor([[0.5, 1.0, 5.0]])  # ratios e^.5 = 1.65, e = 2.72
    assert CORRECTIONS["masked"](old, sampled, mask, cap=2.0)[0].tolist() == pytest.approx([math.exp(0.5), 0.0, 0.0])
    assert CORRECTIONS["masked"](old, -sampled, mask, cap=2.0)[0].tolist() == pytest.approx([math.exp(-0.5), 0.0, 0.0])
    # The whole sequence: e^1.5 = 4.48.
    assert CORRECTIONS["sequence_mask"](old, sampled, mask, cap=5.0)[0, 0].item() == pytest.approx(math.exp(1.5))
    assert CORRECTIONS["sequence_mask"](old, sampled, mask, cap=4.0).abs().max() == 0


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_sampler_that_agrees_changes_nothing(name):
    """UT 5.9: bit for bit."""
    torch.manual_seed(2)
    old = torch.randn(3, 4, requires_grad=True)
    weights = CORRECTIONS[name](old, old.detach(), torch.ones(3, 4), cap=2.0)
    assert torch.equal(weights, torch.ones(3, 4))
    assert not weights.requires_grad


def test_entropy():
    logprobs = torch.tensor([[0.25] * 4, [0.6, 0.4, 1e-30, 1e-30]]).log().requires_grad_()
    measured = entropy(logprobs)
    assert measured.tolist() == pytest.approx([math.log(4), -0.6 * math.log(0.6) - 0.4 * math.log(0.4)], abs=1e-6)
    assert not measured.requires_grad
