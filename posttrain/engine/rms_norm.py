"""RMS normalisation with a gradient of few passes over memory, for fp32 on a CPU.

As models write it, autograd keeps and visits every intermediate result. The gradient is that of layer normalisation
around a mean of zero, for which torch has one kernel, plus what that kernel subtracts for a mean that depends on the
input.

Shapes: (..., C), C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.engine.mix_in import mix_in

_AGREEMENT = 1e-5


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = norm.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        states, weight, scale = ctx.saved_tensors
        width = states.shape[-1]
        by_states, by_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), states.contiguous(), [width], torch.zeros_like(scale), scale, weight, None,
            [True, True, False],
        )  # fmt: skip
        by_states.add_((gradient @ weight)[..., None].mul_(scale).div_(width))
        return by_states, by_weight, None


class _Fused(nn.Module):
    """Mixed into a model's own class of norms, which it falls back to."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, states: Tensor) -> Tensor:
        if torch.is_grad_enabled() and states.dtype == torch.float32 and states.device.type == "cpu":
            fused: Tensor = _RmsNorm.apply(states, self.weight, self.variance_epsilon)
            return fused
        own: Tensor = super().forward(states)
        return own


def fuse_norms(model: nn.Module) -> int:
    """Have the norms of `model` computed as above, in place; how many there are.

    Those that compute something else, such as a weight that is added to 1, are left as they are.
    """
    return mix_in(model, _Fused, _computes_the_same)


def _computes_the_same(module: nn.Module) -> bool:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if eps is None or not isinstance(weight, Tensor) or weight.device.type != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((2, weight.shape[-1]), generator=generator)
    with torch.no_grad():
        own, fused = module(states), _RmsNorm.apply(states, weight.float(), eps)
    return bool(torch.allclose(own.float(), fused, atol=_AGREEMENT, rtol=_AGREEMENT))
