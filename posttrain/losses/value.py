"""The loss of a value network (PPO's critic), per token; posttrain.losses.reduce turns it into a number.

`value` is being trained, `old` is what it predicted when the samples were taken, `returns` is what they turned out to
be worth.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(value_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, *, clip: float) -> Tensor:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) (arXiv 2403.17031, after OpenAI's PPO).

    Beyond `clip` on the side of the returns there is no gradient: a batch moves a value only so far.
    """
    near_BT = old_BT + (value_BT - old_BT).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_BT - returns_BT).square(), (near_BT - returns_BT).square())
