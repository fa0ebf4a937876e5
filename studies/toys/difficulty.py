"""What dividing by the group's standard deviation does to prompts of different difficulty (Dr. GRPO, section 3.1).

One logit per prompt, success probability p, score r - p: the gradient of the mean reward is p(1 - p). Everything is
exact: advantages depend on a group only through its number of successes, which is binomial.

Shapes: K = G + 1 numbers of successes, G samples of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posttrain.rl.advantages import Statistic, advantages


def all_groups(size: int) -> Tensor:
    """Rewards (K, G): a group for every number of successes, which come first."""
    return (torch.arange(size) < torch.arange(size + 1)[:, None]).double()


def chances(p: float, size: int) -> Tensor:
    """Probabilities (K,) of the numbers of successes; in logarithms, because G may be large."""
    counts_K = torch.arange(size + 1, dtype=torch.float64)
    ways_K = math.lgamma(size + 1) - torch.lgamma(counts_K + 1) - torch.lgamma(size - counts_K + 1)
    return (ways_K + counts_K * math.log(p) + (size - counts_K) * math.log1p(-p)).exp()


def expected_gradient(p: float, *, size: int, baseline: Statistic, scale: Statistic) -> float:
    """E[(1/G) sum_i A_i (r_i - p)]."""
    rewards_KG = all_groups(size)
    valid_KG = torch.ones(rewards_KG.shape, dtype=torch.bool)
    advantages_KG = advantages(rewards_KG, valid_KG, baseline=baseline, scale=scale)
    return float((chances(p, size) * (advantages_KG * (rewards_KG - p)).mean(1)).sum())


def weight(p: float, *, size: int, baseline: Statistic, scale: Statistic) -> float:
    """The expected gradient over the true one: how much the prompt counts."""
    return expected_gradient(p, size=size, baseline=baseline, scale=scale) / (p * (1.0 - p))


def limit_weight(p: float) -> float:
    """The weight of a prompt in an infinite group: 1 / std, so that sum 2 arcsin(sqrt(p)) is what ascends."""
    return 1.0 / math.sqrt(p * (1.0 - p))


def chance_of_no_signal(p: float, *, size: int) -> float:
    """Probability that all rewards of the group are equal."""
    return p**size + (1.0 - p) ** size
