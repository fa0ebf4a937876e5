"""Sampling a token from logits: one uniform number, the inverse of the cumulative distribution.

Shapes: B rows, V vocabulary, K blocks of W tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1024
"""Tokens of a vocabulary over which weights are summed one by one."""


def choose(logits_BV: Tensor, uniform_B: Tensor | None, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Sampled token ids (greedy without `uniform_B`) and their log-probabilities in nats, both (B,)."""
    logits_BV = logits_BV.float()
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    highest_B1, best_B1 = logits_BV.max(dim=-1, keepdim=True)
    weights_BV = (logits_BV - highest_B1).exp_()
    if uniform_B is None:
        chosen_B1, total_B1 = best_B1, weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    elif weights_BV.shape[1] <= _BLOCK:
        chosen_B1, total_B1 = draw(weights_BV, uniform_B[:, None])
    else:
        chosen_B1, total_B1 = draw_by_blocks(weights_BV, uniform_B[:, None])
    logprobs_B1 = logits_BV.gather(1, chosen_B1) - highest_B1 - total_B1.log().float()
    return chosen_B1[:, 0], logprobs_B1[:, 0]


def draw(weights_BV: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The first token whose running sum of weights exceeds the number's share of their sum; and that sum."""
    # fp64, because over a large vocabulary a running fp32 sum swallows the small probabilities.
    running_BV = torch.cumsum(weights_BV, dim=-1, dtype=torch.float64)
    total_B1 = running_BV[:, -1:]
    # right=True: a token of probability 0 is never the first whose running sum exceeds the number.
    return torch.searchsorted(running_BV, uniform_B1 * total_B1, right=True), total_B1


def draw_by_blocks(weights_BV: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The same, first among blocks of tokens, then in one of them: a running sum over all is what takes the time."""
    width = weights_BV.shape[1]
    padded = torch.nn.functional.pad(weights_BV, (0, -width % _BLOCK)) if width % _BLOCK else weights_BV
    blocks_BKW = padded.unflatten(1, (-1, _BLOCK))
    running_BK = blocks_BKW.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = running_BK[:, -1:]
    wanted_B1 = uniform_B1 * total_B1
    block_B1 = torch.searchsorted(running_BK, wanted_B1, right=True)
    before_B1 = torch.where(block_B1 > 0, running_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BW = blocks_BKW[torch.arange(len(block_B1), device=block_B1.device), block_B1[:, 0]]
    running_BW = torch.cumsum(inside_BW, dim=-1, dtype=torch.float64)
    # The block's own sum may be smaller by a rounding: then the last token with a weight.
    last_B1 = torch.searchsorted(running_BW, running_BW[:, -1:].contiguous())
    place_B1 = torch.minimum(torch.searchsorted(running_BW, wanted_B1 - before_B1, right=True), last_B1)
    return block_B1 * _BLOCK + place_B1, total_B1
