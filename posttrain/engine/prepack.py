"""Weights laid out once for all products of a decode loop, in bf16 on a CPU.

The library behind torch lays a bf16 weight matrix out anew for every product. Beside the hundreds of tokens of a
training pass this is lost; beside the one token per row of a decode step it is a quarter to a half of the time. The
products are the same to the bit.

Shapes: (..., C), C width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 8
"""Products from which laying out pays; it costs as much as one or two."""


@contextmanager
def prepacked(model: nn.Module, *, products: int) -> Iterator[None]:
    """Without gradients, `model` multiplies by copies of its weights made here, if `products` with each of them pay.

    What changes a weight in the meantime is not seen.
    """
    found = (module for module in model.modules() if type(module) is nn.Linear and _fits(module))
    layers = list(found) if products >= _FEWEST else []
    lay_out: Any = torch.ops.mkldnn._reorder_linear_weight
    for layer in layers:
        # Not by another class: which parts of a model are plain nn.Linear is asked elsewhere.
        layer.forward = partial(_multiply, layer, lay_out(layer.weight.detach()))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _fits(layer: nn.Linear) -> bool:
    if "forward" in vars(layer) or not torch.backends.mkldnn.is_available():
        return False
    weight = layer.weight
    # Under ZeRO 3 the weight is there only while its own module runs: until then it has one dimension.
    return weight.dim() == 2 and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _multiply(layer: nn.Linear, laid_out: Tensor, states: Tensor) -> Tensor:
    if torch.is_grad_enabled() or states.dtype != torch.bfloat16:
        return nn.Linear.forward(layer, states)
    multiply: Any = torch.ops.mkldnn._linear_pointwise
    product: Tensor = multiply(states, laid_out, layer.bias, "none", [], "")
    return product
