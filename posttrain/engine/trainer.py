"""Training steps on DeepSpeed: fp32, or bf16 with fp32 master weights, ZeRO 0-3, one process or many.

A loss function returns additive parts, already divided by a denominator counted over the whole batch (all ranks, all
micro-batches); the trainer only sums. DeepSpeed averages gradients over ranks, so each loss is multiplied by their
number first. Clipping, the gradient norm and the check for non-finite gradients are in the optimizer that DeepSpeed
calls, because with ZeRO 0 it clips without telling the norm, and with bf16 it steps on whatever it got.

With bf16 and ZeRO 0 the master weights are ours (posttrain.engine.masters), and DeepSpeed averages their gradients: its
own optimizer for this adds micro-batches up in bf16. Stage 1 runs as 2, since DeepSpeed's refuses gradients of zero (a
batch without any advantage). ZeRO 3 trains a partitioned copy, so that the caller's model can be sampled from and saved
at any time, at the price of one whole copy of the weights.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.distributed import all_max, all_sum, gather_objects, own_device, start_processes, world_size
from posttrain.engine.gated import keep_less
from posttrain.engine.masters import Masters
from posttrain.engine.optimizers import make_optimizer
from posttrain.engine.policy import DTYPES
from posttrain.engine.rms_norm import fuse_norms
from posttrain.engine.schedule import learning_rate
from posttrain.errors import NonFiniteError

deepspeed_logger.setLevel(logging.ERROR)
# DeepSpeed's own calls, once per micro-batch.
warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)

Item = TypeVar("Item")
LossFn = Callable[[nn.Module, Item], tuple[Tensor, dict[str, Tensor]]]
Check = Callable[[Mapping[str, float]], None]

_LARGEST = "_max"
"""Ending of metrics of which the largest counts, not the sum; none is negative."""

_BUCKET = 2**23
"""Gradients that ZeRO 1 and 2 exchange at a time, in room that they hold throughout: 32 MiB. DeepSpeed's own number is
more than a small model has, and 2 GiB on a GPU whatever the model."""
_ONE_GROUP = 10**15
"""ZeRO 3 steps groups of this many parameters one after the other; the norm needs them all at once."""


@dataclass(frozen=True, slots=True)
class StepStats:
    loss: float
    """Summed over micro-batches and ranks."""
    grad_norm: float
    """Global, before clipping."""
    lr: float
    metrics: dict[str, float]
    """Summed over micro-batches and ranks; those named `..._max`: the largest."""


def accept(metrics: Mapping[str, float]) -> None:
    """Every step is made."""


class _Loss(nn.Module):
    """Runs the loss inside one forward call, so that ZeRO's hooks see whatever parts of the model it uses."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_fn: LossFn[Item], item: Item) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_fn(self.model, item)


class Trainer:
    """Owns the optimizer state of `model`, which it trains in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: config.Optimizer,
        total_steps: int,
        engine: config.Engine,
        seed: int,
    ) -> None:
        start_processes()
        torch.manual_seed(seed)
        self.model = model
        """The caller's model: whole and up to date after every step, whatever the ZeRO stage."""
        self.steps_done = 0
        self._optimizer_config = optimizer
        self._total_steps = total_steps
        bf16 = engine.precision == "bf16"
        self._stage = 2 if bf16 and engine.zero_stage == 1 else engine.zero_stage
        fuse_norms(model)
        keep_less(model)
        # ZeRO 3 takes the weights out of the module it trains, so it gets its own.
        self._trained = copy.deepcopy(model) if self._stage == 3 else model
        model.to(device=own_device(), dtype=DTYPES[engine.precision])
        self._masters = Masters(model) if bf16 and not self._stage else None
        self._optimizer = make_optimizer(
            self._trained, optimizer=optimizer, partitioned=self._stage > 0, masters=self._masters
        )
        self._engine, *_ = deepspeed.initialize(
            model=_Loss(self._trained),
            optimizer=self._optimizer,
            config=_deepspeed_config(self._stage, bf16=bf16 and self._stage > 0),
            dist_init_required=False,
        )

    def step(self, micro_batches: Sequence[Item], loss_fn: LossFn[Item], check: Check = accept) -> StepStats:
        """One optimizer step over all micro-batches of this rank; raises NonFiniteError before it would step.

        `check` sees the metrics of all ranks before the step, and raises where there must be none.
        """
        self._engine.train()
        sums: dict[str, Tensor] = {}
        for item, weight in self._rounds(micro_batches):
            loss, metrics = self._engine(loss_fn, item)
            self._engine.backward(loss * (weight * world_size()))
            for name, value in {"loss": loss, **metrics}.items():
                part = value.detach().double() * weight
                if name in sums:
                    part = torch.maximum(sums[name], part) if name.endswith(_LARGEST) else sums[name] + part
                sums[name] = part
        metrics = _over_ranks(sums)
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"step {self.steps_done}: loss is {metrics['loss']}; wanted: a finite number; the weights are unchanged"
            )
        check(metrics)
        rate = learning_rate(self.steps_done, total_steps=self._total_steps, optimizer=self._optimizer_config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        if not self._engine.was_step_applied():
            # Some of DeepSpeed's optimizers look for infinities themselves, and pass over the step in silence.
            raise NonFiniteError(
                f"step {self.steps_done}: a gradient is not finite; wanted: finite ones; the weights are unchanged"
            )
        self._refresh_model()
        self._engine.eval()
        self.steps_done += 1
        loss_sum = metrics.pop("loss")
        return StepStats(loss=loss_sum, grad_norm=self._optimizer.grad_norm, lr=rate, metrics=metrics)

    def _rounds(self, micro_batches: Sequence[Item]) -> Iterator[tuple[Item, float]]:
        """Micro-batches with weight 1; then, where other ranks have more, the last one again with weight 0.

        Every rank must take part in every exchange of gradients; one that has no micro-batch borrows another's.
        """
        counts = gather_objects(len(micro_batches))
        if not max(counts):
            raise ValueError("a step needs at least one micro-batch, got none on any rank")
        idle = micro_batches[-1] if micro_batches else None
        if not min(counts):
            lent = gather_objects(idle)
            idle = next(item for item in (idle, *lent) if item is not None)
        for item in micro_batches:
            yield item, 1.0
        for _ in range(max(counts) - len(micro_batches)):
            assert idle is not None
            yield idle, 0.0

    def _refresh_model(self) -> None:
        """Bring the caller's model up to date with the master weights or the partitioned copy, where they are apart."""
        if self._masters is not None:
            self._masters.write_back()
        if self._stage < 3:
            return
        with torch.no_grad():
            for whole, part in zip(self.model.parameters(), self._trained.parameters(), strict=True):
                with deepspeed.zero.GatheredParameters([part]):
                    whole.copy_(part)

    def _stepped(self) -> list[Tensor]:
        """What the optimizer steps: the parameters, their masters, or this rank's flat fp32 partition of them."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def _apart(self) -> bool:
        """Whether what the optimizer steps is not the model's own parameters."""
        return self._stage > 0 or self._masters is not None

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments and the number of its steps; weights and learning rate stay."""
        self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """This rank's whole state, as copies: weights, fp32 master weights, moments, step, generators."""
        stepped = self._stepped()
        return {
            "steps_done": self.steps_done,
            "model": {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            "masters": [p.detach().clone() for p in stepped] if self._apart else [],
            "moments": [
                {name: value.detach().clone() for name, value in self._optimizer.state.get(p, {}).items()}
                for p in stepped
            ],
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; same model, ranks and engine."""
        self.model.load_state_dict(state["model"])
        stepped = self._stepped()
        with torch.no_grad():
            if self._stage == 3:
                for whole, part in zip(self.model.parameters(), self._trained.parameters(), strict=True):
                    with deepspeed.zero.GatheredParameters([part], modifier_rank=0):
                        part.copy_(whole)
            if self._apart:
                for parameter, saved in zip(stepped, state["masters"], strict=True):
                    parameter.copy_(saved)
        for parameter, moments in zip(stepped, state["moments"], strict=True):
            self._optimizer.state[parameter] = {name: value.clone() for name, value in moments.items()}
        self.steps_done = state["steps_done"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def _over_ranks(parts: dict[str, Tensor]) -> dict[str, float]:
    """Metrics of all ranks from those of each."""
    names = sorted(parts, key=lambda name: (name.endswith(_LARGEST), name))
    values = torch.stack([parts[name].reshape(()) for name in names])
    first = sum(not name.endswith(_LARGEST) for name in names)
    totals = [all_sum(values[:first]), *([all_max(values[first:])] if first < len(names) else [])]
    return dict(zip(names, torch.cat(totals).tolist(), strict=True))


def _deepspeed_config(stage: int, *, bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        # The number of micro-batches differs from step to step: step() alone says where the batch ends.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": stage,
            **({"compute_grad_norm": False} if stage in (1, 2) else {}),
            "sub_group_size": _ONE_GROUP,
            "reduce_bucket_size": _BUCKET,
            "overlap_comm": False,
        },
    }
