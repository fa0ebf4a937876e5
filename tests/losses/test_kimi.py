"""UT 9.2: the squared log-ratio loss is Kimi k1.5's online mirror descent (arXiv 2501.12599, eq. 2 and 3)."""

import pytest
import torch

from posttrain.losses.policy import squared_log_ratio

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
DRIFT = torch.tensor([0.1, -0.2, 0.0, 0.3], dtype=torch.float64)
TAU = 0.1


def normaliser(rewards: torch.Tensor, tau: float) -> float:
    """tau log Z = tau log mean exp(r / tau), from samples of the policy that starts the iteration."""
    return float(tau * (rewards / tau).exp().mean().log())


def loss_of(policy: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, tau: float) -> torch.Tensor:
    """Of responses of one token each."""
    mask = torch.ones(len(policy), 1, dtype=torch.float64)
    return squared_log_ratio(policy[:, None], old[:, None], mask, advantages[:, None], tau=tau)[:, 0]


@pytest.mark.parametrize(("tau", "value"), [(0.1, 0.930690), (1.0, 0.620115), (10.0, 0.512495)])
def test_the_normaliser_tends_to_the_mean_reward(tau, value):
    """Which is what the objective's baseline group_mean takes for it."""
    assert normaliser(REWARDS, tau) == pytest.approx(value, abs=1e-6)
    assert normaliser(REWARDS, 1e6) == pytest.approx(0.5, abs=1e-6)


def test_the_loss_has_the_gradient_of_the_surrogate_over_two_tau():
    """The surrogate E(r - mean - tau log-ratio)^2 is .23535 here."""
    old = torch.full((4,), -2.0, dtype=torch.float64)
    advantages = REWARDS - REWARDS.mean()
    policy = (old + DRIFT).requires_grad_()
    surrogate = (advantages - TAU * (policy - old)).square().mean()
    assert surrogate.item() == pytest.approx(0.23535, abs=1e-6)
    (expected,) = torch.autograd.grad(surrogate / (2 * TAU), policy)
    (found,) = torch.autograd.grad(loss_of(policy, old, advantages, TAU).mean(), policy)
    torch.testing.assert_close(found, expected)
    assert (-4 * found).tolist() == pytest.approx([0.49, -0.48, -0.5, 0.47])


def test_the_gradient_is_zero_at_the_optimal_policy():
    """pi* is in proportion to ref exp(r / tau): ref (.5, .5), r (1, 0), tau .5 give (.880797, .119203)."""
    old, rewards, tau = torch.tensor([0.5, 0.5], dtype=torch.float64), REWARDS[:2], 0.5
    best = old * (rewards / tau).exp()
    best = best / best.sum()
    assert best.tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)
    logits = best.log().requires_grad_()
    advantages = rewards - normaliser(rewards, tau)
    loss = (old * loss_of(torch.log_softmax(logits, -1), old.log(), advantages, tau)).sum()
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, dtype=torch.float64))
    # From the old policy the step is towards it.
    start = old.log().requires_grad_()
    (old * loss_of(torch.log_softmax(start, -1), old.log(), advantages, tau)).sum().backward()
    assert start.grad[0] < 0 < start.grad[1]
