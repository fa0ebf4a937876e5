"""Rewards of responses that did not end their turn: their text is cut, so what it earned may mean little.

`mask` leaves the reward, which the group's baseline still counts; the response itself is then left out of the loss and
of its denominators (DAPO's overlong filter, arXiv 2503.14476, section 3.4).

Shapes: P prompts, G samples of a group; unfinished_PG is bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Truncation = Callable[..., Tensor]


def as_earned(rewards_PG: Tensor, unfinished_PG: Tensor, *, amount: float) -> Tensor:
    """What the terms say."""
    return rewards_PG


def penalty(rewards_PG: Tensor, unfinished_PG: Tensor, *, amount: float) -> Tensor:
    """`amount` less : the end-of-sequence trick (arXiv 2403.17031)."""
    return rewards_PG - amount * unfinished_PG


def replace(rewards_PG: Tensor, unfinished_PG: Tensor, *, amount: float) -> Tensor:
    """`amount` whatever the terms say (Tulu 3, arXiv 2411.15124: -10 where a right answer earns 10)."""
    return torch.where(unfinished_PG, amount, rewards_PG)


TRUNCATIONS: Mapping[str, Truncation] = {
    "keep": as_earned,
    "mask": as_earned,
    "penalty": penalty,
    "replace": replace,
}
