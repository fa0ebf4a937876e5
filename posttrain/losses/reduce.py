"""From per-token losses to one number: every choice is a weight per token, and every denominator comes from outside.

A denominator counted inside a micro-batch makes the result depend on how the batch was split, so
the caller counts once over the whole batch (all ranks, all micro-batches), and what these functions return is an
additive part of the batch's loss.

Shapes: B sequences, T tokens; mask_BT is 1 on trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over the whole batch, sequences that are not trained included."""

    sequences: int
    tokens: int
    """Response tokens."""
    max_tokens: int
    """Constant C of Dr. GRPO: the largest number of response tokens."""


def sequence_mean(loss_BT: Tensor, mask_BT: Tensor, counts: Denominators) -> Tensor:
    """(1/N) sum_i (1/L_i) sum_t: each sequence weighs the same (GRPO, arXiv 2402.03300; GSPO)."""
    lengths_B = mask_BT.sum(1).clamp(min=1)
    return ((loss_BT * mask_BT).sum(1) / lengths_B).sum() / counts.sequences


def token_mean(loss_BT: Tensor, mask_BT: Tensor, counts: Denominators) -> Tensor:
    """sum / (tokens of the batch): each token weighs the same (DAPO, arXiv 2503.14476)."""
    return (loss_BT * mask_BT).sum() / counts.tokens


def sequence_sum(loss_BT: Tensor, mask_BT: Tensor, counts: Denominators) -> Tensor:
    """(1/N) sum_i sum_t: the plain policy gradient (RLOO, arXiv 2402.14740)."""
    return (loss_BT * mask_BT).sum() / counts.sequences


def constant(loss_BT: Tensor, mask_BT: Tensor, counts: Denominators) -> Tensor:
    """sum / (N C): as sequence_sum, on the scale of a token mean (Dr. GRPO, arXiv 2503.20783)."""
    return (loss_BT * mask_BT).sum() / (counts.sequences * counts.max_tokens)


Aggregate = Callable[[Tensor, Tensor, Denominators], Tensor]

AGGREGATES: Mapping[str, Aggregate] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "sequence_sum": sequence_sum,
    "constant": constant,
}
