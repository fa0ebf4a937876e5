"""A world in which GRPO lowers the mean reward that it is scored on, and Dr. GRPO raises it.

Two prompts share one binary action. Action 1 is better where success is a coin flip anyway, action 0 helps on a prompt
that is nearly always failed, and by a little less. The std of the rare success is small, so dividing by it makes the
second prompt decide.

Shapes: K = G + 1 numbers of successes, G samples of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posttrain.rl.advantages import Statistic, advantages
from studies.toys.difficulty import all_groups, chances

SUCCESS = ((0.565, 0.435), (0.005, 0.12))
"""Of each prompt: success probability of action 1 and of action 0."""


def mean_reward(q: float) -> float:
    """Over the prompts, when action 1 has probability q."""
    return sum(q * one + (1.0 - q) * zero for one, zero in SUCCESS) / len(SUCCESS)


def true_gradient(q: float) -> float:
    """d/d logit of the summed reward: positive for every q."""
    return q * (1.0 - q) * sum(one - zero for one, zero in SUCCESS)


def group_advantages(size: int, *, baseline: Statistic, scale: Statistic) -> Tensor:
    """Advantages (K, G) of a group for every number of successes."""
    rewards_KG = all_groups(size)
    valid_KG = torch.ones(rewards_KG.shape, dtype=torch.bool)
    return advantages(rewards_KG, valid_KG, baseline=baseline, scale=scale)


def expected_gradient(q: float, advantages_KG: Tensor) -> float:
    """E[(1/G) sum_i A_i (a_i - q)], summed over the prompts.

    Exact: advantages depend on rewards alone, so a sample's score a - q enters by its mean given the sample's reward.
    """
    size = advantages_KG.shape[1]
    rewards_KG = all_groups(size)
    total = 0.0
    for one, zero in SUCCESS:
        p = q * one + (1.0 - q) * zero
        after_success, after_failure = q * one / p - q, q * (1.0 - one) / (1.0 - p) - q
        scores_KG = torch.where(rewards_KG > 0, after_success, after_failure)
        total += float((chances(p, size) * (advantages_KG * scores_KG).mean(1)).sum())
    return total


def train(advantages_KG: Tensor, *, lr: float, steps: int) -> float:
    """q after gradient ascent from q = 1/2 on the logit, with the expected gradient."""
    logit = 0.0
    for _ in range(steps):
        q = 1.0 / (1.0 + math.exp(-logit))
        logit += lr * expected_gradient(q, advantages_KG)
    return 1.0 / (1.0 + math.exp(-logit))
