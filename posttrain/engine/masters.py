"""fp32 master weights of a bf16 model, whole on every rank: small updates add up in them (arXiv 1710.03740, sec. 3.1).

The optimizer steps the masters. A parameter's gradient goes into theirs, in fp32, as soon as the backward pass has it,
so that never more than one is held in bf16.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


class Masters:
    """For as long as this lives, the gradients of the model's trainable parameters are found in the masters only.

    Theirs have their room from the start: made and freed step by step, it would lie between the activations.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.weights = [nn.Parameter(p.detach().float()) for p in self._parameters]
        """In the order of the model's trainable parameters."""
        self._gradients = [torch.zeros_like(master) for master in self.weights]
        self._reached: set[int] = set()
        """Which have a gradient of this step."""
        for index, (parameter, master) in enumerate(zip(self._parameters, self.weights, strict=True)):
            master.grad = self._gradients[index]
            parameter.register_post_accumulate_grad_hook(partial(self._add, index))

    def _add(self, index: int, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if index in self._reached:
            self._gradients[index].add_(gradient)
        else:
            self._gradients[index].copy_(gradient)
            self._reached.add(index)

    def complete(self) -> None:
        """Set the gradients to zero that no backward pass has reached."""
        for index, gradient in enumerate(self._gradients):
            if index not in self._reached:
                gradient.zero_()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the stepped masters into the model, and forget their gradients."""
        torch._foreach_copy_([*self._parameters], [*self.weights])
        self._reached.clear()
