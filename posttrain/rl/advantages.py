"""Advantages of grouped samples: reward minus a baseline, over a scale.

The mean of the group, itself included, gives (1 - 1/G) times the gradient that leaving the sample out gives. Dividing
by the group's standard deviation changes the objective: prompts that are nearly always or never solved weigh more
(Dr. GRPO, arXiv 2503.20783). Standard deviations have ddof 1. Samples that could not be verified are in no statistic.

Shapes: P prompts, G samples of a group; valid_PG (bool) marks samples with a verdict. float64, and relative to the
largest reward, so that a group of equal rewards has advantages of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

STD_EPSILON = 1e-6
"""Added to a standard deviation; the published codes differ (1e-4 to 1e-9)."""
VARIANCE_EPSILON = 1e-8
"""Added to the variance of all tokens."""


def no_baseline(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """0."""
    return torch.zeros_like(rewards_PG)


def group_mean(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Mean of the group (GRPO, Dr. GRPO)."""
    return _mean(rewards_PG, valid_PG)


def leave_one_out(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Mean of the others of the group (RLOO, arXiv 2402.14740); a sample without others is its own baseline."""
    top_P1 = _top(rewards_PG, valid_PG)
    below_PG = torch.where(valid_PG, rewards_PG - top_P1, 0.0)
    others_P1 = (valid_PG.sum(1, keepdim=True) - 1).clamp(min=1)
    alone_P1 = valid_PG.sum(1, keepdim=True) == 1
    return torch.where(alone_P1, rewards_PG, top_P1 + (below_PG.sum(1, keepdim=True) - below_PG) / others_P1)


def batch_mean(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Mean of all samples of the step."""
    return _mean(rewards_PG.reshape(1, -1), valid_PG.reshape(1, -1)).expand_as(rewards_PG)


Statistic = Callable[[Tensor, Tensor], Tensor]

BASELINES: Mapping[str, Statistic] = {
    "none": no_baseline,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "batch_mean": batch_mean,
}


def no_scale(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(rewards_PG)


def group_std(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Standard deviation of the group (GRPO, arXiv 2402.03300)."""
    return _std(rewards_PG, valid_PG)


def batch_std(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Standard deviation of all rewards of the step."""
    return _std(rewards_PG.reshape(1, -1), valid_PG.reshape(1, -1)).expand_as(rewards_PG)


SCALES: Mapping[str, Statistic] = {
    "none": no_scale,
    "group_std": group_std,
    "batch_std": batch_std,
    "whiten": no_scale,  # of tokens, once they have their advantages: see `whiten`
}


def advantages(rewards_PG: Tensor, valid_PG: Tensor, *, baseline: Statistic, scale: Statistic) -> Tensor:
    """(rewards - baseline) / scale, shape (P, G), float64; 0 for samples without a verdict."""
    rewards_PG = rewards_PG.double()
    scaled_PG = (rewards_PG - baseline(rewards_PG, valid_PG)) / scale(rewards_PG, valid_PG)
    return torch.where(valid_PG, scaled_PG, 0.0)


def whiten(advantages: Sequence[Tensor], trained: Sequence[bool]) -> list[Tensor]:
    """Advantages (T,) of responses with mean 0 and variance 1 over all tokens of those trained; the others untouched.

    Each token weighs the same, so that long responses decide the mean. What is constant becomes exactly 0.
    """
    kept = [row_T for row_T, is_trained in zip(advantages, trained, strict=True) if is_trained]
    tokens_N = torch.cat(kept) if kept else torch.empty(0)
    if len(tokens_N) < 2:
        return list(advantages)
    # Relative to the largest, as in the group's statistics.
    mean = tokens_N.max() + (tokens_N - tokens_N.max()).mean()
    scale = ((tokens_N - mean).square().sum() / (len(tokens_N) - 1) + VARIANCE_EPSILON).rsqrt()
    pairs = zip(advantages, trained, strict=True)
    return [(row_T - mean) * scale if is_trained else row_T for row_T, is_trained in pairs]


def _top(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    top_P1 = torch.where(valid_PG, rewards_PG, -torch.inf).max(1, keepdim=True).values
    return torch.where(top_P1.isfinite(), top_P1, 0.0)


def _mean(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    top_P1 = _top(rewards_PG, valid_PG)
    below_PG = torch.where(valid_PG, rewards_PG - top_P1, 0.0)
    return top_P1 + below_PG.sum(1, keepdim=True) / valid_PG.sum(1, keepdim=True).clamp(min=1)


def _std(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    residuals_PG = torch.where(valid_PG, rewards_PG - _mean(rewards_PG, valid_PG), 0.0)
    freedom_P1 = (valid_PG.sum(1, keepdim=True) - 1).clamp(min=1)
    return (residuals_PG.square().sum(1, keepdim=True) / freedom_P1).sqrt() + STD_EPSILON
