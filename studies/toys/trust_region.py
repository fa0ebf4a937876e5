"""TRPO's step beside the clipped loss, on a bandit small enough to be exact.

Three prompts, four answers each; the best answer of each is rarer than the one before. TRPO's KL per update is what was
asked for. The clip stops single ratios, not the KL: it depends on the learning rate and on the number of gradient
steps, and along the plain gradient a given KL buys less, because rare answers have small gradients.

Shapes: S prompts, A answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from posttrain.losses.policy import ppo_clip
from posttrain.rl.trpo import TrpoStep, mean_kl, surrogate, trpo_step

REWARDS_SA = torch.tensor(
    [[0.2, 0.0, 0.1, 1.0], [0.2, 1.0, 0.1, 0.0], [1.0, 0.5, 0.0, 0.2]],
    dtype=torch.float64,
)
START_SA = torch.tensor(
    [[0.40, 0.30, 0.20, 0.10], [0.48, 0.02, 0.25, 0.25], [0.004, 0.396, 0.30, 0.30]],
    dtype=torch.float64,
).log()
WEIGHTS_S = torch.full((3,), 1.0 / 3.0, dtype=torch.float64)

MAX_KL, DAMPING, ITERATIONS, SHRINK, MAX_SHRINKS = 0.01, 1e-3, 10, 0.8, 20
CLIP, GRADIENT_STEPS = 0.2, 20


@dataclass(frozen=True, slots=True)
class Path:
    returns: list[float]
    """Mean reward before the first and after every update."""
    kls: list[float]
    """Mean KL(pi_old || pi) of every update, nats."""


def mean_reward(logits_SA: Tensor) -> float:
    return float((WEIGHTS_S * (torch.softmax(logits_SA, -1) * REWARDS_SA).sum(-1)).sum())


def advantages_of(logits_SA: Tensor) -> Tensor:
    """Reward minus the policy's mean reward of the prompt."""
    return REWARDS_SA - (torch.softmax(logits_SA, -1) * REWARDS_SA).sum(-1, keepdim=True)


def trpo_update(logits_SA: Tensor) -> TrpoStep:
    old_SA = torch.log_softmax(logits_SA, -1)
    advantages_SA = advantages_of(logits_SA)
    return trpo_step(
        logits_SA,
        lambda moved_SA: surrogate(moved_SA, old_SA, advantages_SA, WEIGHTS_S),
        lambda moved_SA: mean_kl(moved_SA, old_SA, WEIGHTS_S),
        max_kl=MAX_KL, damping=DAMPING, iterations=ITERATIONS, shrink=SHRINK, max_shrinks=MAX_SHRINKS,
    )  # fmt: skip


def clipped_loss(logits_SA: Tensor, old_SA: Tensor, advantages_SA: Tensor) -> Tensor:
    """PPO's loss in expectation over the old policy: answers take the place of tokens."""
    policy_SA = torch.log_softmax(logits_SA, -1)
    loss_SA, _ = ppo_clip(policy_SA - old_SA, policy_SA, advantages_SA, low=CLIP, high=CLIP, dual=3.0)
    return (WEIGHTS_S * (old_SA.exp() * loss_SA).sum(-1)).sum()


def clipped_update(logits_SA: Tensor, *, lr: float) -> Tensor:
    """The logits after GRADIENT_STEPS of plain gradient descent on the clipped loss."""
    old_SA, advantages_SA = torch.log_softmax(logits_SA, -1), advantages_of(logits_SA)
    moved_SA = logits_SA
    for _ in range(GRADIENT_STEPS):
        point_SA = moved_SA.detach().requires_grad_()
        (gradient_SA,) = torch.autograd.grad(clipped_loss(point_SA, old_SA, advantages_SA), point_SA)
        moved_SA = moved_SA - lr * gradient_SA
    return moved_SA


def follow(update: Callable[[Tensor], Tensor], *, updates: int) -> Path:
    """`updates` updates in a row, each from where the last one led."""
    logits_SA, returns, kls = START_SA, [mean_reward(START_SA)], []
    for _ in range(updates):
        old_SA = torch.log_softmax(logits_SA, -1)
        logits_SA = update(logits_SA)
        returns.append(mean_reward(logits_SA))
        kls.append(float(mean_kl(logits_SA, old_SA, WEIGHTS_S)))
    return Path(returns, kls)


def follow_trpo(*, updates: int) -> Path:
    return follow(lambda logits_SA: trpo_update(logits_SA).parameters, updates=updates)


def follow_clipped(*, lr: float, updates: int) -> Path:
    return follow(partial(clipped_update, lr=lr), updates=updates)
