"""Gated feed-forward parts (SwiGLU; Shazeer, arXiv 2002.05202) that keep two wide tensors for the backward pass.

As models write them, autograd keeps four: gate, its activation, up, and the product that goes down. The last two
follow from the others by two cheap operators, which the backward pass runs again, so that a layer's memory falls by a
quarter and no bit changes.

Shapes: (..., I), I width of the feed-forward part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from posttrain.engine.mix_in import mix_in


@dataclass(slots=True)
class _Product:
    """In the place of silu(gate) * up, which is computed again from what a part keeps."""

    gate: Tensor
    up: Tensor
    shape: torch.Size
    activated: list[Tensor]
    """silu(gate), from then until the backward pass has reached this part's gate."""

    def again(self) -> Tensor:
        self.activated[:] = [silu(self.gate)]
        return (self.activated[0] * self.up).view(self.shape)


class _Gated(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activated: list[Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activated = activated
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        activated = ctx.activated.pop() if ctx.activated else silu(gate)
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * activated, None


class _LeanGated(nn.Module):
    """Mixed into a model's own class of feed-forward parts."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_proj(states), self.up_proj(states)
        if not torch.is_grad_enabled():
            own: Tensor = self.down_proj(silu(gate) * up)
            return own
        activated: list[Tensor] = []
        product = _Gated.apply(gate, up, activated)

        def pack(kept: Tensor) -> Tensor | _Product:
            if kept.data_ptr() != product.data_ptr():
                return kept
            return _Product(gate.detach(), up.detach(), kept.shape, activated)

        def unpack(kept: Tensor | _Product) -> Tensor:
            return kept.again() if isinstance(kept, _Product) else kept

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            down: Tensor = self.down_proj(product)
        return down


def keep_less(model: nn.Module) -> int:
    """Have the feed-forward parts of `model` computed as above, in place; how many there are.

    Those that compute something else, such as another activation, are left as they are.
    """
    return mix_in(model, _LeanGated, _computes_the_same)


def _computes_the_same(module: nn.Module) -> bool:
    names = ("gate_proj", "up_proj", "down_proj")
    if any(type(getattr(module, name, None)) is not nn.Linear for name in names):
        return False
    weight: Tensor = module.gate_proj.weight  # type: ignore[union-attr, assignment]
    states = torch.randn((2, weight.shape[1]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = states.to(weight)
        return bool(torch.equal(module(states), _LeanGated.forward(module, states)))  # type: ignore[arg-type]
