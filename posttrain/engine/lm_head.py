"""The LM head over a large vocabulary, on a CPU.

What training reads of the logits is one number per token, or two. So they are made part by part, read row by row while
they lie in the cache, and made again for the gradient, which is written into their place; only those of the last part
are still there then. Autograd would visit them in fp32 a dozen times, and add up a gradient of the weights per part.

In fp32 the library behind torch lays the whole weight matrix out anew for every product, which takes half of the time.
Blocks of the vocabulary that stay in the cache do not pay for it.

Shapes: M tokens, C width, V vocabulary; P tokens of a part, R rows read at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

_BLOCK = 1024
"""Tokens of the vocabulary in one product."""
LARGE = 8 * _BLOCK
"""Vocabulary from which all this is used."""
_PART_BYTES = 2**27
"""Of logits held at once: in bf16 those of 1,300 tokens over a vocabulary of 50,000, none of which is made twice."""
_ROWS_ELEMENTS = 2**20
"""Logits read at once, in fp32: 4 MiB."""


class _ByBlocks(torch.autograd.Function):
    """hidden @ weight.T, its values by blocks; the gradients are whole products, which are fast as they are."""

    @staticmethod
    def forward(ctx: Any, hidden_MC: Tensor, weight_VC: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_MC, weight_VC)
        return _multiply(hidden_MC, weight_VC, hidden_MC.new_empty((len(hidden_MC), len(weight_VC))))

    @staticmethod
    def backward(ctx: Any, gradient_MV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_MC, weight_VC = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad
        by_hidden = gradient_MV @ weight_VC if wants_hidden else None
        by_weight = gradient_MV.t() @ hidden_MC if wants_weight else None
        return by_hidden, by_weight


class _Predicted(torch.autograd.Function):
    """Log-probabilities of the targets, with a gradient, and entropies without.

    d log p(y) / d logits = (1 at y, else 0) - p, divided by the temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MC: Tensor, weight_VC: Tensor, targets_M: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        parts = _parts(len(hidden_MC), weight_VC)
        room_PV = _room(hidden_MC, weight_VC, parts)
        logprobs_M, norms_M, entropy_M = torch.empty((3, len(hidden_MC))).unbind()
        for part in parts:
            logits_PV = _multiply(hidden_MC[part], weight_VC, room_PV[: part.stop - part.start])
            for at, block in _rows(part, logits_PV):
                logits_RV = block.to(torch.float32, copy=True).div_(temperature)
                logprobs_M[at], norms_M[at], entropy_M[at] = _read(logits_RV, targets_M[at])
        ctx.save_for_backward(hidden_MC, weight_VC, targets_M, logprobs_M, norms_M)
        ctx.temperature, ctx.parts, ctx.last_PV = temperature, parts, room_PV
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_MC, weight_VC, targets_M, logprobs_M, norms_M = ctx.saved_tensors
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        gradient_M = gradient_M / ctx.temperature
        at_target_M = -torch.expm1(logprobs_M) * gradient_M
        by_hidden, by_weight = (torch.empty_like(hidden_MC) if wants_hidden else None), None
        # Gone once it was written over, should another backward pass come.
        room_PV, ctx.last_PV = ctx.last_PV, None
        for part in reversed(ctx.parts):
            if room_PV is None or part is not ctx.parts[-1]:
                room_PV = _room(hidden_MC, weight_VC, ctx.parts) if room_PV is None else room_PV
                _multiply(hidden_MC[part], weight_VC, room_PV[: part.stop - part.start])
            by_logits_PV = room_PV[: part.stop - part.start]
            for at, block in _rows(part, by_logits_PV):
                chances_RV = block.float().div_(ctx.temperature).sub_(norms_M[at, None]).exp_()
                by_logits_RV = chances_RV.mul_(-gradient_M[at, None])
                block.copy_(by_logits_RV.scatter_(1, targets_M[at, None], at_target_M[at, None]))
            if by_hidden is not None:
                torch.mm(by_logits_PV, weight_VC, out=by_hidden[part])
            if wants_weight and by_weight is None:
                by_weight = by_logits_PV.t() @ hidden_MC[part]
            elif by_weight is not None:
                by_weight.addmm_(by_logits_PV.t(), hidden_MC[part])
        return by_hidden, by_weight, None, None


def _read(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target), log sum exp and entropy, (R,) each; the logits are lost."""
    highest_R = logits_RV.amax(-1)
    below_RV = logits_RV.sub_(highest_R[:, None])
    weights_RV = below_RV.exp()
    sums_R, targeted_R = weights_RV.sum(-1), below_RV.gather(1, targets_R[:, None])[:, 0]
    entropy_R = sums_R.log() - weights_RV.mul_(below_RV).sum(-1) / sums_R
    return targeted_R - sums_R.log(), sums_R.log() + highest_R, entropy_R


def project(head: nn.Module, hidden_MC: Tensor) -> Tensor:
    """Logits (M, V), in the precision of the hidden states; what `head` makes of them, but for rounding."""
    by_blocks = hidden_MC.dtype == torch.float32 and reads_in_parts(head, hidden_MC)
    logits_MV: Tensor = _ByBlocks.apply(hidden_MC, head.weight) if by_blocks else head(hidden_MC)
    return logits_MV


def read_in_parts(
    head: nn.Linear, hidden_MC: Tensor, targets_M: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """log p(target) at `temperature` and the entropy without gradient, (M,) each, in nats, fp32.

    For heads of which `reads_in_parts` says so.
    """
    logprobs_M, entropy_M = _Predicted.apply(hidden_MC, head.weight, targets_M, temperature)
    return logprobs_M, entropy_M


def reads_in_parts(head: nn.Module, hidden_MC: Tensor) -> TypeGuard[nn.Linear]:
    """Whether this is a head as above: nothing but a large weight matrix."""
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    weight = head.weight
    # Under ZeRO 3 the weight is there only while its own module runs: until then it has one dimension.
    whole = weight.dim() == 2 and len(weight) >= LARGE
    known = hidden_MC.dtype in (torch.float32, torch.bfloat16)
    return whole and known and hidden_MC.device.type == "cpu" and hidden_MC.dtype == weight.dtype


def _multiply(hidden_PC: Tensor, weight_VC: Tensor, out_PV: Tensor) -> Tensor:
    """The logits, in the room given."""
    if hidden_PC.dtype == torch.float32:
        for block, some in zip(out_PV.split(_BLOCK, dim=1), weight_VC.split(_BLOCK), strict=True):
            torch.mm(hidden_PC, some.t(), out=block)
        return out_PV
    return torch.mm(hidden_PC, weight_VC.t(), out=out_PV)


def _parts(count: int, weight_VC: Tensor) -> list[slice]:
    """Of equal size but for the last."""
    most = max(1, _PART_BYTES // (len(weight_VC) * weight_VC.element_size()))
    size = math.ceil(count / max(1, math.ceil(count / most)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size or 1)] or [slice(0, 0)]


def _room(hidden_MC: Tensor, weight_VC: Tensor, parts: list[slice]) -> Tensor:
    """For the logits of one part, (P, V)."""
    return hidden_MC.new_empty((parts[0].stop, len(weight_VC)))


def _rows(part: slice, logits_PV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Of a part: places among all tokens, and their logits."""
    size = max(1, _ROWS_ELEMENTS // logits_PV.shape[1])
    for start in range(part.start, part.stop, size):
        at = slice(start, min(start + size, part.stop))
        yield at, logits_PV[at.start - part.start : at.stop - part.start]
