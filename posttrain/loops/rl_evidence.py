"""What is kept when a loss or a gradient is not finite: the responses that make it so, for a person to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.chat.template import decode_ids
from posttrain.engine.distributed import rank
from posttrain.engine.trainer import Check, StepStats, Trainer, accept
from posttrain.errors import NonFiniteError
from posttrain.files import write_atomic
from posttrain.loops.rl_step import MicroBatch, Trajectory, collate

MOST = 16
"""Responses written down; more would only repeat the first."""

RlLoss = Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where it goes."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast

    def train(
        self,
        trainer: Trainer,
        micro_batches: Sequence[MicroBatch],
        loss_fn: RlLoss,
        own: Sequence[Trajectory],
        check: Check = accept,
    ) -> StepStats:
        """One optimizer step; where it fails, the error names the file with those of `own` that are at fault."""
        try:
            return trainer.step(micro_batches, loss_fn, check)
        except NonFiniteError as error:
            found = self._at_fault(trainer.model, loss_fn, own)
            if not found:
                raise NonFiniteError(f"{error}; no response of this rank is at fault alone") from error
            path = self.folder / f"nonfinite-{rank()}.jsonl"
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
            raise NonFiniteError(
                f"{error}; responses at fault ({len(found)}, at most {MOST} are kept), "
                f"the first of them to problem {found[0]['problem_id']}: {path}"
            ) from error

    def _at_fault(self, model: PreTrainedModel, loss_fn: RlLoss, own: Sequence[Trajectory]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for trajectory in own:
            loss, gradient = loss_alone(model, loss_fn, trajectory)
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                found.append(describe(trajectory, self.tokenizer) | {"loss": str(loss), "gradient": str(gradient)})
            if len(found) == MOST:
                break
        return found


def loss_alone(model: PreTrainedModel, loss_fn: RlLoss, trajectory: Trajectory) -> tuple[float, float]:
    """Loss and gradient norm that one response has by itself."""
    loss, _ = loss_fn(model, collate([trajectory], model.device))
    # Not backward(): the engine's hooks on the parameters would take the gradients for a part of a step.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squared = sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None)
    return float(loss.detach()), math.sqrt(squared)


def describe(trajectory: Trajectory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A response with everything its loss was made of."""
    rollout = trajectory.rollout
    tensors = {
        "advantages": trajectory.advantages,
        "old": trajectory.old,
        "reference": trajectory.reference,
        "values": trajectory.values,
        "returns": trajectory.returns,
    }
    return {
        "problem_id": rollout.problem_id,
        "text": decode_ids(tokenizer, rollout.response_ids),
        "prompt_ids": list(rollout.prompt_ids),
        "response_ids": list(rollout.response_ids),
        "sampled": list(rollout.logprobs),
        **{name: row.tolist() for name, row in tensors.items() if row is not None},
    }
