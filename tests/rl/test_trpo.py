"""TRPO's step by hand, its two promises on a tabular bandit, and the clipped loss beside it."""

import math

import pytest
import torch

from posttrain.rl.trpo import conjugate_gradient, hessian_product, mean_kl, natural_step, surrogate, trpo_step
from studies.toys.trust_region import (
    MAX_KL,
    START_SA,
    WEIGHTS_S,
    advantages_of,
    clipped_loss,
    follow_clipped,
    follow_trpo,
    trpo_update,
)

OLD_SA = torch.log_softmax(START_SA, -1)


def test_step_by_hand():
    """UT 3.3: g = [1, 0], F = diag(2, 1), max_kl .01: [.1, 0], whose quadratic KL is .5 * 2 * .01 = .01."""
    fisher = torch.tensor([2.0, 1.0], dtype=torch.float64)
    gradient = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for damping in (0.0, 0.1):
        step = natural_step(gradient, lambda v: fisher * v, max_kl=0.01, damping=damping, iterations=10)
        assert step.tolist() == pytest.approx([0.1, 0.0])
        assert 0.5 * float((step * fisher * step).sum()) == pytest.approx(0.01)


def test_without_a_gradient_there_is_no_step():
    zero = torch.zeros(3, dtype=torch.float64)
    assert natural_step(zero, lambda v: v, max_kl=0.01, damping=0.1, iterations=10).abs().max() == 0


def test_conjugate_gradient_solves_in_as_many_iterations_as_rows():
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(5), torch.randn(5, dtype=torch.float64)
    for iterations in (5, 50):
        found = conjugate_gradient(lambda v: matrix @ v, target, iterations=iterations)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-6, atol=1e-8)


def test_the_curvature_of_the_kl_is_the_fisher_matrix():
    """Of a softmax: diag(p) - p p^T for each state, times the state's weight."""
    product = hessian_product(lambda logits_SA: mean_kl(logits_SA, OLD_SA, WEIGHTS_S), START_SA)
    torch.manual_seed(1)
    vector_SA = torch.randn_like(START_SA)
    p_SA = OLD_SA.exp()
    expected_SA = p_SA * vector_SA - p_SA * (p_SA * vector_SA).sum(-1, keepdim=True)
    torch.testing.assert_close(product(vector_SA), expected_SA / 3)
    torch.testing.assert_close(product(torch.ones_like(START_SA)), torch.zeros_like(START_SA))


def test_at_the_old_policy_the_surrogate_has_the_gradient_of_the_mean_reward():
    logits_SA = START_SA.clone().requires_grad_()
    surrogate(logits_SA, OLD_SA, advantages_of(START_SA), WEIGHTS_S).backward()
    p_SA = OLD_SA.exp()
    torch.testing.assert_close(logits_SA.grad, p_SA * advantages_of(START_SA) / 3)


def test_every_step_keeps_the_kl_and_improves():
    """The two promises, over forty steps to the optimum; the surrogate's bound makes the true reward rise as well."""
    path = follow_trpo(updates=40)
    assert max(path.kls) <= MAX_KL
    assert all(after >= before for before, after in zip(path.returns, path.returns[1:], strict=False))
    assert path.returns[-1] == pytest.approx(1.0, abs=1e-3)
    first = trpo_update(START_SA)
    assert first.gain > 0 and 0.5 * MAX_KL < first.kl <= MAX_KL
    # The reported numbers are those of the parameters.
    assert first.kl == pytest.approx(float(mean_kl(first.parameters, OLD_SA, WEIGHTS_S)))
    after, before = (surrogate(x, OLD_SA, advantages_of(START_SA), WEIGHTS_S) for x in (first.parameters, START_SA))
    assert first.gain == pytest.approx(float(after - before))


def test_the_line_search_shrinks_what_breaks_the_bound():
    """The KL away from 0 is `factor` times its own second-order form: at 3.9 half the length is within the bound."""
    steps = {}
    for factor in (0.9, 3.9):
        steps[factor] = trpo_step(
            torch.zeros(1, dtype=torch.float64),
            lambda x: x.sum(),
            lambda x, factor=factor: torch.where(x.abs() > 1e-9, factor, 1.0).mul(0.5 * x.square()).sum(),
            max_kl=0.02, damping=0.0, iterations=3, shrink=0.5, max_shrinks=5,
        )  # fmt: skip
    # Length sqrt(2 * .02 / 1) = .2, whose second-order KL is .02.
    assert steps[0.9].shrinks == 0 and steps[0.9].parameters.item() == pytest.approx(0.2)
    assert steps[3.9].shrinks == 1 and steps[3.9].parameters.item() == pytest.approx(0.1)
    assert steps[3.9].kl == pytest.approx(3.9 * 0.005)


def test_where_no_length_is_accepted_nothing_moves():
    start = torch.zeros(1, dtype=torch.float64)
    numbers = {"max_kl": 0.02, "damping": 0.0, "iterations": 3, "shrink": 0.5, "max_shrinks": 5}
    # The gradient at 0 points up, and every step of finite length goes down.
    step = trpo_step(start, lambda x: (x - 1e6 * x.square()).sum(), lambda x: 0.5 * x.square().sum(), **numbers)
    assert torch.equal(step.parameters, start) and (step.gain, step.kl, step.shrinks) == (0.0, 0.0, 5)


def test_for_the_same_kl_the_plain_gradient_of_the_clipped_loss_buys_less():
    """The yardstick: the clipped loss has the policy gradient, whose length is found here by bisection on the KL."""
    natural = trpo_update(START_SA)
    point_SA = START_SA.clone().requires_grad_()
    (gradient_SA,) = torch.autograd.grad(clipped_loss(point_SA, OLD_SA, advantages_of(START_SA)), point_SA)
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = math.sqrt(low * high) if low else high / 2
        too_far = mean_kl(START_SA - middle * gradient_SA, OLD_SA, WEIGHTS_S) > natural.kl
        low, high = (low, middle) if too_far else (middle, high)
    moved_SA = START_SA - low * gradient_SA
    assert float(mean_kl(moved_SA, OLD_SA, WEIGHTS_S)) == pytest.approx(natural.kl, rel=1e-6)
    gains = [surrogate(x, OLD_SA, advantages_of(START_SA), WEIGHTS_S) for x in (moved_SA, natural.parameters)]
    assert 0 < float(gains[0]) < 0.9 * float(gains[1])


def test_the_clip_does_not_bound_the_kl():
    """Its KL grows with the learning rate; where it stays within TRPO's, the reward rises more slowly."""
    trpo = follow_trpo(updates=40)
    slow, fast = (follow_clipped(lr=lr, updates=40) for lr in (0.3, 30.0))
    assert max(slow.kls) <= MAX_KL < 10 * MAX_KL < max(fast.kls)
    assert slow.returns[-1] < trpo.returns[-1] - 0.1
