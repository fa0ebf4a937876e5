"""Optimizers as DeepSpeed calls them: AdamW and Muon, which clip by the global norm and never step on infinities.

Muon steps the weight matrices of hidden layers by their momentum made orthogonal: every direction in which a matrix
can change is then used equally, where AdamW's step is dominated by few of them (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). Embeddings, the output head and vectors keep AdamW. Updates are scaled to
the size of AdamW's, so that one learning rate and weight decay suit both (Liu et al., "Muon is scalable for LLM
training", arXiv 2502.16982, equation 4). torch.optim.Muon is not used, since it orthogonalises in bf16: on a CPU
without bf16 units that costs more than the training step itself; in fp32 it costs a tenth of one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posttrain import config
from posttrain.engine.distributed import all_sum, world_size
from posttrain.engine.masters import Masters
from posttrain.errors import NonFiniteError

MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates as usually seen (arXiv 2502.16982, section 2.2)."""


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global norm, and raises NonFiniteError instead of stepping on a non-finite gradient."""

    def __init__(
        self, parameters: Any, *, optimizer: config.Optimizer, partitioned: bool, masters: Masters | None = None
    ) -> None:
        super().__init__(
            parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
        )
        self._largest = optimizer.grad_clip
        self._partitioned = partitioned
        """Whether each rank holds a part of the gradients (ZeRO) rather than all of them."""
        self._masters = masters
        self.grad_norm = 0.0

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """What DeepSpeed averages over ranks without ZeRO, by the name it asks for: gradients, and none of experts.

        One rank has nothing to average, and is spared a copy of them all.
        """
        if self._masters is not None:
            self._masters.complete()
        gradients = []
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return (gradients if world_size() > 1 else []), {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squared = torch.zeros((), dtype=torch.float64, device=grads[0].device)
        for norm in torch._foreach_norm(grads):
            squared += norm.double() ** 2
        if self._partitioned:
            squared = all_sum(squared)
        self.grad_norm = math.sqrt(float(squared))
        if not math.isfinite(self.grad_norm):
            raise NonFiniteError(
                f"gradient norm is {self.grad_norm}; wanted: a finite number; the weights are unchanged"
            )
        if self.grad_norm > self._largest:
            torch._foreach_mul_(grads, self._largest / (self.grad_norm + 1e-6))
        self._step_clipped()

    def _step_clipped(self) -> None:
        super().step()


class ClippedMuon(ClippedAdamW):
    """Muon for the hidden matrices of a model, AdamW for the rest; needs whole gradients on every rank."""

    def __init__(self, model: nn.Module, *, optimizer: config.Optimizer, masters: Masters | None = None) -> None:
        chosen = {id(p) for p in hidden_matrices(model)}
        groups: list[dict[str, Any]] = [{"params": [], "matrices": False}, {"params": [], "matrices": True}]
        for parameter, stepped in _trainable(model, masters):
            groups[id(parameter) in chosen]["params"].append(stepped)
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, optimizer=optimizer, partitioned=False, masters=masters)

    def _step_clipped(self) -> None:
        groups = self.param_groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group["params"], lr=group["lr"], weight_decay=group["weight_decay"])
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super()._step_clipped()
        finally:
            self.param_groups = groups

    def _step_matrices(self, matrices: Sequence[Tensor], *, lr: float, weight_decay: float) -> None:
        directions = []
        for p in matrices:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"].lerp_(p.grad, 1.0 - MOMENTUM)
            directions.append(p.grad.lerp(momentum, MOMENTUM))  # type: ignore[union-attr]
        for p, update in zip(matrices, orthogonal(directions), strict=True):
            scale = _RMS_OF_ADAMW * math.sqrt(max(p.shape))
            p.mul_(1.0 - lr * weight_decay).add_(update, alpha=-lr * scale)


def make_optimizer(
    model: nn.Module, *, optimizer: config.Optimizer, partitioned: bool, masters: Masters | None = None
) -> ClippedAdamW:
    """The optimizer of params.yaml over the trainable parameters of `model`, or over their master weights."""
    if optimizer.kind == "muon":
        if partitioned:
            raise config.ConfigError(
                "optimizer.kind: got 'muon' with engine.zero_stage above 0, wanted 'adamw': "
                "Muon needs whole matrices, and ZeRO partitions them"
            )
        return ClippedMuon(model, optimizer=optimizer, masters=masters)
    stepped = [stepped for _, stepped in _trainable(model, masters)]
    return ClippedAdamW(stepped, optimizer=optimizer, partitioned=partitioned, masters=masters)


def _trainable(model: nn.Module, masters: Masters | None) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """The trainable parameters, each with what is to be stepped in its place."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(zip(parameters, parameters if masters is None else masters.weights, strict=True))


def hidden_matrices(model: nn.Module) -> Iterator[Tensor]:
    """Trainable weights of the linear layers between embeddings and heads.

    A head maps hidden states to a vocabulary or to labels; it lies outside the stack of layers, whose modules are
    numbered in a list.
    """
    for name, module in model.named_modules():
        in_stack = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.Linear) and in_stack and module.weight.requires_grad:
            yield module.weight


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2), its singular vectors as they were.

    Five steps of a Newton-Schulz iteration of degree five, whose coefficients are Jordan's; matrices of one shape go
    through it together. A matrix of zeros stays one.
    """
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    for index, matrix in enumerate(wide):
        by_shape[matrix.shape].append(index)
    found: dict[int, Tensor] = {}
    a, b, c = _NEWTON_SCHULZ
    for indices in by_shape.values():
        x_NRC = torch.stack([wide[i] for i in indices])
        x_NRC = x_NRC / (torch.linalg.matrix_norm(x_NRC, keepdim=True) + 1e-7)
        for _ in range(_ITERATIONS):
            gram_NRR = x_NRC @ x_NRC.mT
            x_NRC = a * x_NRC + torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c) @ x_NRC
        found |= dict(zip(indices, x_NRC, strict=True))
    return [found[i] if matrix.shape[0] <= matrix.shape[1] else found[i].mT for i, matrix in enumerate(matrices)]
