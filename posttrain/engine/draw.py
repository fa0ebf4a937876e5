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
    highest_B1 = logits_BV.amax(dim=-1, keepdim=True)
    weights_BV = (logits_BV - highest_B1).exp_()
    if uniform_B is None:
        chosen_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        total_B1 = weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
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
    vocabulary = weights_BV.shape[1]
    whole = vocabulary - vocabulary % _BLOCK
    # Within a block fp32 is enough; in fp64 the sum would first copy all weights.
    sums = [weights_BV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)]
    if whole < vocabulary:
        sums.append(weights_BV[:, whole:].sum(-1, keepdim=True))
    running_BK = torch.cat(sums, dim=1).double().cumsum(-1)
    total_B1 = running_BK[:, -1:]
    wanted_B1 = uniform_B1 * total_B1
    block_B1 = torch.searchsorted(running_BK, wanted_B1, right=True)
    before_B1 = torch.where(block_B1 > 0, running_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    tokens_BW = block_B1 * _BLOCK + torch.arange(_BLOCK, device=block_B1.device)
    inside_BW = weights_BV.gather(1, tokens_BW.clamp(max=vocabulary - 1)).masked_fill_(tokens_BW >= vocabulary, 0.0)
    running_BW = torch.cumsum(inside_BW, dim=-1, dtype=torch.float64)
    # The block's own sum may be smaller by a rounding: then the last token with a weight.
    last_B1 = torch.searchsorted(running_BW, running_BW[:, -1:].contiguous())
    place_B1 = torch.minimum(torch.searchsorted(running_BW, wanted_B1 - before_B1, right=True), last_B1)
    return block_B1 * _BLOCK + place_B1, total_B1
