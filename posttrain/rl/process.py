"""Advantages of tokens from the rewards of reasoning steps (DeepSeekMath, arXiv 2402.03300, section 4.1.3).

Step rewards are normalised over all steps of all responses of the group, and a token has the sum of those that end at
it or later. A response of many steps has large sums: split a step in two, and its tokens count twice.

Shapes: G responses of a group, T tokens of a response, S steps of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rl.advantages import Statistic, advantages


@dataclass(frozen=True, slots=True)
class StepReward:
    """What one step of a response is worth."""

    end: int
    """Index of the step's last token among the response's."""
    reward: float


def process_advantages(
    steps_G: Sequence[Sequence[StepReward]], lengths_G: Sequence[int], *, baseline: Statistic, scale: Statistic
) -> list[Tensor]:
    """Advantages (T,) of each response, float64; 0 where the group has no steps."""
    rewards_1S = torch.tensor([[step.reward for steps in steps_G for step in steps]], dtype=torch.float64)
    normalised = [torch.zeros(length, dtype=torch.float64) for length in lengths_G]
    if rewards_1S.shape[1] == 0:
        return normalised
    valid_1S = torch.ones_like(rewards_1S, dtype=torch.bool)
    z_S = iter(advantages(rewards_1S, valid_1S, baseline=baseline, scale=scale)[0])
    for row_T, steps in zip(normalised, steps_G, strict=True):
        for step in steps:
            row_T[step.end] += next(z_S)
    return [row_T.flip(0).cumsum(0).flip(0) for row_T in normalised]
