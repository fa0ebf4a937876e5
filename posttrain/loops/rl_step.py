"""The pieces of an RL step between samples and gradient: batching and loss.

The loss of a micro-batch is an additive part of the step's: every denominator is counted over the whole minibatch
before the first forward pass.

Shapes: B responses, T tokens (prompt and response, right-padded), N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.engine.batching import micro_batches
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.policy import wanted_logits
from posttrain.loops.recipe import Recipe
from posttrain.loops.scoring import Response, response_length, response_mask
from posttrain.losses.policy import entropy
from posttrain.losses.reduce import Denominators
from posttrain.records import Rollout


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A response to be trained on."""

    rollout: Rollout
    advantage: float
    old: Tensor | None
    """Log-probabilities (response tokens,) under the policy that starts the update; None: that is the current one."""
    reference: Tensor | None
    """Under the reference policy; None where the loss has no KL."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    ids_BT: Tensor
    mask_BT: Tensor
    """bool; True on response tokens."""
    advantages_BT: Tensor
    sampled_BT: Tensor
    """Log-probabilities that the sampler reported."""
    old_BT: Tensor | None
    reference_BT: Tensor | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of one optimizer step."""

    loss: Denominators
    trained_tokens: int
    """Tokens that metrics are averaged over."""


Made = TypeVar("Made")


def from_first_rank(make: Callable[[], Made]) -> Made:
    """What the first rank makes, on every rank."""
    if world_size() == 1:
        return make()
    box: list[Made | None] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return cast(Made, box[0])


def token_ids(rollout: Rollout) -> Response:
    """Prompt and response."""
    return rollout.prompt_ids, rollout.response_ids


def collate(trajectories: Sequence[Trajectory], device: torch.device) -> MicroBatch:
    """Tensors of a micro-batch. Either all trajectories have old (and reference) log-probabilities, or none."""
    rollouts = [trajectory.rollout for trajectory in trajectories]
    ids_BT, mask_BT = response_mask([token_ids(rollout) for rollout in rollouts])
    advantages_B1 = torch.tensor([[trajectory.advantage] for trajectory in trajectories], dtype=torch.float32)

    def spread(rows: Sequence[Tensor]) -> Tensor:
        return torch.zeros(ids_BT.shape).masked_scatter(mask_BT, torch.cat(list(rows))).to(device)

    old = [trajectory.old for trajectory in trajectories if trajectory.old is not None]
    reference = [trajectory.reference for trajectory in trajectories if trajectory.reference is not None]
    return MicroBatch(
        ids_BT.to(device),
        mask_BT.to(device),
        (advantages_B1 * mask_BT).to(device),
        spread([torch.tensor(rollout.logprobs) for rollout in rollouts]),
        spread(old) if old else None,
        spread(reference) if reference else None,
    )


def make_micro_batches(trajectories: Sequence[Trajectory], *, tokens: int, device: torch.device) -> list[MicroBatch]:
    """Micro-batches of like lengths, each of at most `tokens` padded tokens."""
    groups = micro_batches(
        [response_length(token_ids(trajectory.rollout)) for trajectory in trajectories], tokens=tokens
    )
    return [collate([trajectories[i] for i in group], device) for group in groups]


def make_loss(
    recipe: Recipe, counts: Counts, *, temperature: float
) -> Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]]:
    """The loss of a micro-batch and its metrics, both as additive parts of those of the optimizer step."""

    def loss_fn(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits_NV = wanted_logits(model, batch.ids_BT, batch.mask_BT)
        logprobs_NV = torch.log_softmax(logits_NV if temperature == 1.0 else logits_NV / temperature, dim=-1)
        policy_N = logprobs_NV.gather(1, batch.ids_BT[batch.mask_BT][:, None])[:, 0]
        mask_BT = batch.mask_BT.float()
        policy_BT = torch.zeros_like(mask_BT).masked_scatter(batch.mask_BT, policy_N)
        # On-policy the current log-probabilities are the old ones, and the ratio is exactly 1.
        old_BT = policy_BT.detach() if batch.old_BT is None else batch.old_BT
        loss_BT, clipped_BT = recipe.surrogate(recipe, policy_BT, old_BT, mask_BT, batch.advantages_BT)
        loss_BT = loss_BT * recipe.correction(old_BT, batch.sampled_BT, mask_BT, cap=recipe.correction_cap)
        if recipe.kl_in_loss and batch.reference_BT is not None:
            loss_BT = loss_BT + recipe.kl_in_loss * recipe.kl(policy_BT, batch.reference_BT, old_BT)
        difference_BT = (old_BT - batch.sampled_BT).abs() * mask_BT
        return recipe.aggregate(loss_BT, mask_BT, counts.loss), {
            "train/entropy": entropy(logprobs_NV).sum() / counts.trained_tokens,
            "train/clip_fraction": (clipped_BT * mask_BT).sum() / counts.trained_tokens,
            "rollout/mismatch": difference_BT.sum() / counts.trained_tokens,
        }

    return loss_fn
