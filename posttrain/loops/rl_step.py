"""The pieces of an RL step between samples and gradient: batching and loss.

The loss of a micro-batch is an additive part of the step's: every denominator is counted over the whole minibatch
before the first forward pass.

Shapes: B responses, T trained tokens at most, M of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import predicted_tokens
from posttrain.engine.trainer import Check, StepStats
from posttrain.errors import MismatchError
from posttrain.loops.recipe import Recipe
from posttrain.losses.kl import k3
from posttrain.losses.policy import LOG_RATIO_LIMIT
from posttrain.losses.reduce import Denominators
from posttrain.records import Rollout

WEIGHT, WEIGHT_SQUARE = "rollout/weight", "rollout/weight_square"
"""Parts of the effective sample size."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A response to be trained on."""

    rollout: Rollout
    advantages: Tensor
    """Of each response token."""
    old: Tensor | None
    """Log-probabilities (response tokens,) under the policy that starts the update; None: that is the current one."""
    reference: Tensor | None
    """Under the reference policy; None where the loss has no KL."""
    values: Tensor | None = None
    returns: Tensor | None = None
    """What the value network predicted at each token, and what it is trained towards; None without one."""
    fresh: Sequence[bool] | None = None
    """Which response tokens the loss sees; None: all."""

    @property
    def tokens(self) -> int:
        """Of the response, as far as the loss sees them."""
        return len(self.rollout.response_ids) if self.fresh is None else sum(self.fresh)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    packed: Packed
    """Whose wanted tokens are those that the loss sees."""
    advantages_BT: Tensor
    sampled_BT: Tensor
    """Log-probabilities that the sampler reported."""
    old_BT: Tensor | None
    reference_BT: Tensor | None
    values_BT: Tensor | None
    returns_BT: Tensor | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of one optimizer step."""

    loss: Denominators
    trained_tokens: int
    """Tokens that metrics are averaged over."""


def token_ids(rollout: Rollout) -> Response:
    """Prompt and response."""
    return rollout.prompt_ids, rollout.response_ids


def collate(trajectories: Sequence[Trajectory], device: torch.device) -> MicroBatch:
    """Tensors of a micro-batch. What some trajectories have beside their advantages, all of them must have."""
    rollouts = [trajectory.rollout for trajectory in trajectories]
    seen = [t.fresh or [True] * len(t.rollout.response_ids) for t in trajectories]
    packed = pack([token_ids(rollout) for rollout in rollouts], wanted=seen)
    seen_L = torch.tensor([token for row in seen for token in row])

    def spread(rows: Sequence[Tensor]) -> Tensor:
        return packed.spread(torch.cat(list(rows)).float()[seen_L]).to(device)

    def if_given(rows: Sequence[Tensor | None]) -> Tensor | None:
        given = [row for row in rows if row is not None]
        return spread(given) if given else None

    return MicroBatch(
        packed.to(device),
        spread([trajectory.advantages for trajectory in trajectories]),
        spread([torch.tensor(rollout.logprobs) for rollout in rollouts]),
        if_given([trajectory.old for trajectory in trajectories]),
        if_given([trajectory.reference for trajectory in trajectories]),
        if_given([trajectory.values for trajectory in trajectories]),
        if_given([trajectory.returns for trajectory in trajectories]),
    )


def make_micro_batches(trajectories: Sequence[Trajectory], *, tokens: int, device: torch.device) -> list[MicroBatch]:
    """Micro-batches, each of at most `tokens` tokens; a prompt counts once for all its responses in one."""
    groups = plan([[token_ids(trajectory.rollout)] for trajectory in trajectories], tokens=tokens)
    return [collate([trajectories[i] for i in group], device) for group in groups]


def make_loss(
    recipe: Recipe, counts: Counts, *, temperature: float
) -> Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]]:
    """The loss of a micro-batch and its metrics, both as additive parts of those of the optimizer step."""

    def loss_fn(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        policy_M, entropy_M = predicted_tokens(model, batch.packed, temperature=temperature)
        policy_BT, mask_BT = batch.packed.spread(policy_M), batch.packed.mask_BT.float()
        # On-policy the current log-probabilities are the old ones, and the ratio is exactly 1.
        old_BT = policy_BT.detach() if batch.old_BT is None else batch.old_BT
        loss_BT, clipped_BT = recipe.surrogate(recipe, policy_BT, old_BT, mask_BT, batch.advantages_BT)
        loss_BT = loss_BT * recipe.correction(old_BT, batch.sampled_BT, mask_BT, cap=recipe.correction_cap)
        if recipe.kl_in_loss and batch.reference_BT is not None:
            loss_BT = loss_BT + recipe.kl_in_loss * recipe.kl(policy_BT, batch.reference_BT, old_BT)
        return recipe.aggregate(loss_BT, mask_BT, counts.loss), {
            "train/entropy": entropy_M.sum() / counts.trained_tokens,
            **clip_metrics(recipe, policy_BT.detach(), old_BT, mask_BT, clipped_BT, counts),
            **mismatch_metrics(old_BT, batch.sampled_BT, mask_BT, counts),
        }

    return loss_fn


def clip_metrics(
    recipe: Recipe, policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, clipped_BT: Tensor, counts: Counts
) -> dict[str, Tensor]:
    """How far the policy has moved from the old one within the update, and what the clip does about it."""
    log_ratio_BT = (policy_BT - old_BT) * mask_BT
    upward_BT = recipe.ratio(policy_BT, old_BT, mask_BT) > 0
    return {
        "train/clip_fraction": (clipped_BT * mask_BT).sum() / counts.trained_tokens,
        "train/clip_low": (clipped_BT * mask_BT * ~upward_BT).sum() / counts.trained_tokens,
        "train/clip_high": (clipped_BT * mask_BT * upward_BT).sum() / counts.trained_tokens,
        "train/ratio": (log_ratio_BT.exp() * mask_BT).sum() / counts.trained_tokens,
        "kl/update_k1": -log_ratio_BT.sum() / counts.trained_tokens,
        "kl/update_k2": 0.5 * log_ratio_BT.square().sum() / counts.trained_tokens,
    }


def mismatch_metrics(old_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, counts: Counts) -> dict[str, Tensor]:
    """How far the trainer's log-probabilities are from those the sampler reported: both are of the same weights.

    The two moments of the importance weight become the effective sample size once the batch is summed.
    """
    difference_BT = (old_BT - sampled_BT) * mask_BT
    weight_BT = difference_BT.clamp(max=LOG_RATIO_LIMIT).exp() * mask_BT
    return {
        "rollout/mismatch": difference_BT.abs().sum() / counts.trained_tokens,
        "rollout/mismatch_max": difference_BT.abs().max(),
        "rollout/mismatch_k3": (k3(sampled_BT, old_BT, sampled_BT) * mask_BT).sum() / counts.trained_tokens,
        WEIGHT: weight_BT.sum() / counts.trained_tokens,
        WEIGHT_SQUARE: weight_BT.square().sum() / counts.trained_tokens,
    }


def within_budget(budget: float) -> Check:
    """A check before the step: MismatchError where the k3 of sampler and trainer (nats per token) is above `budget`."""

    def check(metrics: Mapping[str, float]) -> None:
        k3_token = metrics["rollout/mismatch_k3"]
        if not k3_token <= budget:
            raise MismatchError(
                f"sampler and trainer differ by k3 = {k3_token:.3g} nats per token "
                f"(mean |difference| {metrics['rollout/mismatch']:.3g}, largest {metrics['rollout/mismatch_max']:.3g}, "
                f"effective samples {_with_sample_size(metrics)['rollout/effective_samples']:.1%}), "
                f"wanted: at most {budget:g} (mismatch_budget); the weights are unchanged. Where samples are stale: a "
                "smaller asynchrony.max_staleness or optimizer.lr; where they are not: the same numerics on both sides "
                "(engine.precision). What is left, objective.correction weighs: truncated, masked or sequence_mask, "
                "under a larger budget"
            )

    return check


def step_metrics(stats: Sequence[StepStats]) -> dict[str, float]:
    """Means over the optimizer steps of a batch; of `..._max` the largest; of the ratio the first one, too."""
    if not stats:
        return {}
    steps = [_with_sample_size(step.metrics) for step in stats]
    metrics = {
        name: max(values) if name.endswith("_max") else mean(values)
        for name, values in ((name, [step[name] for step in steps]) for name in steps[0])
    }
    return metrics | {
        "train/ratio_first": steps[0]["train/ratio"],
        "train/loss": mean([step.loss for step in stats]),
        "train/grad_norm": mean([step.grad_norm for step in stats]),
        "train/learning_rate": stats[-1].lr,
    }


def _with_sample_size(metrics: Mapping[str, float]) -> dict[str, float]:
    """`rollout/effective_samples`: (sum w)^2 / (n sum w^2), the share of the tokens that the weights leave."""
    weight, square = metrics[WEIGHT], metrics[WEIGHT_SQUARE]
    kept = {name: value for name, value in metrics.items() if name not in (WEIGHT, WEIGHT_SQUARE)}
    return kept | {"rollout/effective_samples": weight * weight / square if square > 0 else 0.0}


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
