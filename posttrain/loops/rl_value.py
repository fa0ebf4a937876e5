"""The value network of PPO: a body with a scalar head, where it starts, its predictions, and its loss.

The value of a token is read where the token is predicted, before it is known.

Shapes: B responses, T response tokens at most, M of all, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.config_rl import ValueBaseline
from posttrain.engine.packing import Packed, Response
from posttrain.engine.policy import Policy, Precision
from posttrain.engine.scalar_head import load_reward_model, with_scalar_head
from posttrain.engine.trainer import StepStats
from posttrain.loops.reward_scores import head_at
from posttrain.loops.rl_step import Counts, MicroBatch, mean
from posttrain.loops.scoring import per_response
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


def values_of(model: nn.Module, packed: Packed) -> Tensor:
    """Values (M,) in fp32 of the wanted tokens, from what comes before each."""
    return head_at(model, packed, packed.before_M)


def predict_values(model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int) -> list[Tensor]:
    """Values (on the CPU) of each response's tokens, without gradient."""

    def read(packed: Packed) -> Sequence[Tensor]:
        return packed.split(values_of(model, packed).cpu())

    return per_response(responses, read, micro_batch_tokens=micro_batch_tokens, device=model.device)


def make_value_loss(
    counts: Counts, *, clip: float
) -> Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]]:
    """The value network's loss on a micro-batch: an additive part of the mean over the step's tokens."""

    def loss_fn(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.values_BT is not None and batch.returns_BT is not None
        mask_BT = batch.packed.mask_BT.float()
        value_BT = batch.packed.spread(values_of(model, batch.packed))
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
