"""The value network of PPO: a body with a scalar head, where it starts, its predictions, and its loss.

The value of a token is read where the token is predicted, before it is known.

Shapes: B responses, T tokens (prompt and response, right-padded), N response tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.config_rl import ValueBaseline
from posttrain.engine.batching import micro_batches
from posttrain.engine.policy import Policy, Precision
from posttrain.engine.scalar_head import load_reward_model, with_scalar_head
from posttrain.engine.trainer import StepStats
from posttrain.loops.rl_step import Counts, MicroBatch, mean
from posttrain.loops.scoring import Response, response_length, response_mask
from posttrain.losses.reduce import token_mean
from posttrain.losses.value import clipped_value_loss


def start_value_network(policy: Policy, start: ValueBaseline, *, precision: Precision, seed: int) -> PreTrainedModel:
    """The policy's body with a new head; or a reward model, which knows already what answers are worth.

    Raises ModelError for a folder that holds none.
    """
    if start.reward_model is None:
        return with_scalar_head(policy.model, seed=seed)
    model = load_reward_model(Path(start.reward_model), policy.tokenizer, precision=precision)
    return model.requires_grad_(True).to(policy.model.device)


def values_at(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Values (N,) in fp32 of the tokens at `mask_BT` (bool), row-major, from what comes before each."""
    body, head = model.get_submodule(str(model.base_model_prefix)), model.get_submodule("score")
    hidden_BTC = body(input_ids=ids_BT, use_cache=False).last_hidden_state
    values_N: Tensor = head(hidden_BTC[:, :-1][mask_BT[:, 1:]]).float()[:, 0]
    return values_N


def predict_values(model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int) -> list[Tensor]:
    """Values (on the CPU) of each response's tokens, without gradient."""
    values: list[Tensor] = [torch.empty(0)] * len(responses)
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        ids_BT, mask_BT = response_mask([responses[i] for i in indices])
        with torch.no_grad():
            values_N = values_at(model, ids_BT.to(model.device), mask_BT.to(model.device)).cpu()
        for index, row in zip(indices, values_N.split(mask_BT.sum(1).tolist()), strict=True):
            values[index] = row
    return values


def make_value_loss(
    counts: Counts, *, clip: float
) -> Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]]:
    """The value network's loss on a micro-batch: an additive part of the mean over the step's tokens."""

    def loss_fn(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.values_BT is not None and batch.returns_BT is not None
        mask_BT = batch.mask_BT.float()
        values_N = values_at(model, batch.ids_BT, batch.mask_BT)
        value_BT = torch.zeros_like(mask_BT).masked_scatter(batch.mask_BT, values_N)
        loss_BT = clipped_value_loss(value_BT, batch.values_BT, batch.returns_BT, clip=clip)
        clipped_BT = ((value_BT - batch.values_BT).detach().abs() > clip).float()
        return token_mean(loss_BT, mask_BT, counts.loss), {
            "train/value_clip_fraction": (clipped_BT * mask_BT).sum() / counts.trained_tokens
        }

    return loss_fn


def value_step_metrics(stats: Sequence[StepStats]) -> dict[str, float]:
    """Means over the value network's optimizer steps of a batch."""
    if not stats:
        return {}
    return {
        "train/value_loss": mean([step.loss for step in stats]),
        "train/value_grad_norm": mean([step.grad_norm for step in stats]),
        "train/value_clip_fraction": mean([step.metrics["train/value_clip_fraction"] for step in stats]),
    }
