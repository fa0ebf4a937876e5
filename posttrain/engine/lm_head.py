"""The LM head over a large vocabulary, on a CPU in fp32: the product with its weights, block by block of tokens.

The library behind torch lays the whole weight matrix out anew for every product, and at a vocabulary of tens of
thousands this takes half of the time. Blocks that stay in the cache do not pay for it.

Shapes: M tokens, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 1024
"""Tokens of the vocabulary in one product."""
LARGE = 8 * _BLOCK
"""Vocabulary from which blocks are used."""


class _ByBlocks(torch.autograd.Function):
    """hidden @ weight.T, its values by blocks; the gradients are whole products, which are fast as they are."""

    @staticmethod
    def forward(ctx: Any, hidden_MC: Tensor, weight_VC: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_MC, weight_VC)
        logits_MV = hidden_MC.new_empty((len(hidden_MC), len(weight_VC)))
        for block, part in zip(logits_MV.split(_BLOCK, dim=1), weight_VC.split(_BLOCK), strict=True):
            torch.mm(hidden_MC, part.t(), out=block)
        return logits_MV

    @staticmethod
    def backward(ctx: Any, gradient_MV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_MC, weight_VC = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad
        by_hidden = gradient_MV @ weight_VC if wants_hidden else None
        by_weight = gradient_MV.t() @ hidden_MC if wants_weight else None
        return by_hidden, by_weight


def project(head: nn.Module, hidden_MC: Tensor) -> Tensor:
    """Logits (M, V), in the precision of the hidden states; what `head` makes of them, but for rounding."""
    logits_MV: Tensor = _ByBlocks.apply(hidden_MC, head.weight) if _pays(head, hidden_MC) else head(hidden_MC)
    return logits_MV


def _pays(head: nn.Module, hidden_MC: Tensor) -> bool:
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    weight = head.weight
    # Under ZeRO 3 the weight is there only while its own module runs: until then it has one dimension.
    whole = weight.dim() == 2 and len(weight) >= LARGE
    return whole and hidden_MC.device.type == "cpu" and hidden_MC.dtype == weight.dtype == torch.float32
