"""Attention as plain matrix products, for short rows in bf16 on a CPU.

Torch's fused kernel multiplies bf16 there at a small part of the machine's rate, its backward pass most of all. As
batched products attention runs near it, at the price of keeping the probabilities for the backward pass, which for
rows of a few hundred tokens is less than what a layer's feed-forward part keeps. Scores and their softmax are fp32, as
in the fused kernel.

Shapes: R rows of W tokens, Q query heads, H key-value heads, G query heads per key-value head, K keys (those before the
row's own, then its W), D head width; B queries of a block and N keys that they can see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 1024
"""Keys up to which the probabilities are worth keeping."""
_BLOCK = 64
"""Queries that share their keys: what lies behind the last of them is not computed."""


def pays(query: Tensor, keys: int) -> bool:
    """Whether products are faster than the fused kernel here."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and keys <= LONGEST


def attend_by_products(
    query_RQWD: Tensor, keys_RHKD: Tensor, values_RHKD: Tensor, seen_R1WK: Tensor, *, scaling: float
) -> Tensor:
    """softmax(query keys^T scaling) values, (R, Q, W, D), over the keys that `seen_R1WK` (bool) shows.

    The last W keys are the row's own, of which a query sees none behind itself, whatever the mask says of them.
    """
    attended: Tensor = _Products.apply(query_RQWD, keys_RHKD, values_RHKD, seen_R1WK, scaling)
    return attended


def _blocks(width: int, keys: int) -> list[tuple[int, int, int]]:
    """(first query, one past the last, keys that these can see)."""
    ends = [*range(_BLOCK, width, _BLOCK), width]
    return [(start, end, keys - width + end) for start, end in zip([0, *ends], ends, strict=False)]


def _hide(scores: Tensor, unseen: Tensor) -> None:
    """-inf where a query does not see a key; often that is among the last keys only, which are the queries' own."""
    earlier = unseen.shape[-1] - unseen.shape[-2]
    if not bool(unseen[..., :earlier].any()):
        scores, unseen = scores[..., earlier:], unseen[..., earlier:]
    scores.masked_fill_(unseen, float("-inf"))


class _Products(torch.autograd.Function):
    """Kept: query, keys, values and, block by block, the probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scaling: float) -> Tensor:
        rows, heads, width, depth = query.shape
        query_RHGWD = query.reshape(rows, keys.shape[1], -1, width, depth)
        keys_RHKD, values_RHKD = keys.flatten(0, 1), values.flatten(0, 1)
        scaled_RHGWD, keys_RHDK = (
            query_RHGWD.to(torch.float32, copy=True).mul_(scaling),
            keys_RHKD.float().transpose(1, 2),
        )
        out_RHGWD = torch.empty_like(query_RHGWD)
        kept = []
        for start, end, visible in _blocks(width, keys.shape[2]):
            queries = scaled_RHGWD[:, :, :, start:end].reshape(len(keys_RHKD), -1, depth)
            scores = torch.bmm(queries, keys_RHDK[:, :, :visible]).view(rows, heads, end - start, visible)
            _hide(scores, ~seen[:, :, start:end, :visible])
            chances = torch.softmax(scores, -1).to(query.dtype).view(len(keys_RHKD), -1, visible)
            found = torch.bmm(chances, values_RHKD[:, :visible])
            out_RHGWD[:, :, :, start:end] = found.view(rows, keys.shape[1], -1, end - start, depth)
            kept.append(chances)
        ctx.save_for_backward(query_RHGWD, keys_RHKD, values_RHKD, *kept)
        ctx.scaling, ctx.shapes = scaling, (query.shape, keys.shape)
        return out_RHGWD.view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_RHGWD, keys_RHKD, values_RHKD, *kept = ctx.saved_tensors
        gradient = gradient.reshape(query_RHGWD.shape)
        depth = gradient.shape[-1]
        by_query = torch.empty_like(query_RHGWD)
        by_keys, by_values = (torch.zeros_like(a, dtype=torch.float32) for a in (keys_RHKD, values_RHKD))
        width, count = query_RHGWD.shape[3], keys_RHKD.shape[1]
        for (start, end, visible), chances in zip(_blocks(width, count), kept, strict=True):
            queries, by_out = (
                a[:, :, :, start:end].reshape(len(keys_RHKD), -1, depth) for a in (query_RHGWD, gradient)
            )
            by_chances = torch.bmm(by_out, values_RHKD[:, :visible].transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_chances, chances, -1, chances.dtype)
            by_values[:, :visible] += torch.bmm(chances.transpose(1, 2), by_out)
            by_keys[:, :visible] += torch.bmm(by_scores.transpose(1, 2), queries)
            by_query[:, :, :, start:end] = torch.bmm(by_scores, keys_RHKD[:, :visible]).view_as(
                by_query[:, :, :, start:end]
            )
        shape, key_shape = ctx.shapes
        by_keys.mul_(ctx.scaling)
        return (
            by_query.mul_(ctx.scaling).view(shape),
            by_keys.to(gradient.dtype).view(key_shape),
            by_values.to(gradient.dtype).view(key_shape),
            None,
            None,
        )
