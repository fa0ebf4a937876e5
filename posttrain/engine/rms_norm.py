"""RMS normalisation with a gradient of few passes over memory, on a CPU.

As models write it, autograd keeps and visits every intermediate result, in fp32 whatever the model is in. Here it keeps
the input and one number per row. In fp32 the gradient is that of layer normalisation around a mean of zero, for which
torch has one kernel, plus what that kernel subtracts for a mean that depends on the input. In bf16 that kernel adds up
the weight's gradient in bf16, an error of some percent, so the gradient is written out.

Shapes: (..., C), C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.engine.mix_in import mix_in

_AGREEMENT = 1e-5


def _scale(states: Tensor, eps: float) -> Tensor:
    """What a row is multiplied by, (..., 1), at least in fp32."""
    precise = torch.promote_types(states.dtype, torch.float32)
    norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=precise)
    return norm.square_().div_(states.shape[-1]).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(states, eps)
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


class _Bf16RmsNorm(torch.autograd.Function):
    """The same in bf16, normalised in fp32; products with a vector add up in fp32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(states, eps)
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).to(states.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        states, weight, scale = ctx.saved_tensors
        width = states.shape[-1]
        products = gradient * states
        by_weight = scale.to(states.dtype).flatten() @ products.reshape(-1, width)
        along = ((products @ weight)[..., None].float() * scale.square()).div_(-width).to(states.dtype)
        return (gradient * weight).addcmul_(states, along).mul_(scale.to(states.dtype)), by_weight, None


_NORMS: dict[torch.dtype, Any] = {torch.float32: _RmsNorm, torch.bfloat16: _Bf16RmsNorm}


class _Fused(nn.Module):
    """Mixed into a model's own class of norms, which it falls back to."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, states: Tensor) -> Tensor:
        norm = _NORMS.get(states.dtype) if states.dtype == self.weight.dtype else None
        if torch.is_grad_enabled() and norm is not None and states.device.type == "cpu":
            fused: Tensor = norm.apply(states, self.weight, self.variance_epsilon)
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
