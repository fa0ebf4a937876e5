"""Supervised fine-tuning: the mean negative log-likelihood of the trained tokens.

Shapes: N trained tokens of a part of the batch.
"""

from __future__ import annotations

from torch import Tensor


def sft_loss(policy_N: Tensor, *, tokens: int) -> Tensor:
    """An additive part of the batch's loss, in nats per token.

    `tokens` counts the trained tokens of the whole batch, so that each weighs the same however the batch is split.
    """
    return -policy_N.sum() / tokens
