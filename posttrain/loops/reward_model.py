"""A Bradley-Terry reward model: the policy's body with a scalar head on the last token of the response.

Saved, it is an ordinary sequence classifier with one label. What it learns is a difference: the level is fixed by
centering alone. How good it is stands in posttrain.evals.pair_quality.

Shape: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import Policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.engine.trainer import Trainer
from posttrain.evals.pair_quality import Compared, pair_quality
from posttrain.loops.clock import Clock
from posttrain.loops.ending import refuse_other_end
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.reward_scores import score_responses, scores
from posttrain.loops.scoring import epoch_batches, response_length
from posttrain.losses.preference import bradley_terry
from posttrain.records import Pair

TOO_MANY_EPOCHS = 1.0
"""Beyond it a reward model learns its pairs by heart: training accuracy rises and held-out accuracy does not."""

Responses = tuple[Response, Response]
"""Chosen and rejected."""


@dataclass(frozen=True, slots=True)
class RewardBatch:
    responses: Packed
    """Of each pair the chosen one, then the rejected one."""
    margin_B: Tensor
    """By how much each chosen response has to be ahead, in reward."""


def run_reward_model(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    section: config.RewardModel,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    save_every: int,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The reward model trained on the `train` pairs, and its quality on these and on the `heldout` ones."""
    sides = {name: [pair for pair in pairs if pair.split == name] for name in ("train", "heldout")}
    train = [
        (pair_ids(policy.tokenizer, pair), required_margin(pair, scale=section.margin_scale)) for pair in sides["train"]
    ]
    model = with_scalar_head(policy.model, seed=seed)
    batches = epoch_batches(len(train), size=section.batch_pairs, epochs=section.epochs, seed=seed)
    trainer = Trainer(model, optimizer=section.optimizer, total_steps=len(batches), engine=engine, seed=seed)
    if found := latest_checkpoint(checkpoints):
        trainer.load_state_dict(found[1]["trainer"])
    for step in range(trainer.steps_done, len(batches)):
        clock = Clock()
        chosen = [train[i] for i in batches[step]]
        parts = make_reward_batches(
            chosen[rank() :: world_size()], tokens=engine.micro_batch_tokens, device=model.device
        )
        stats = trainer.step(parts, make_reward_loss(len(chosen), centering=section.centering))
        measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
        tokens = sum(response_length(response) for pair, _ in chosen for response in pair)
        log(measured | stats.metrics | clock.metrics(tokens=tokens), step + 1)
        if (step + 1) % save_every == 0 and step + 1 < len(batches):
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict()})
    refuse_other_end(trainer.steps_done, len(batches))
    quality = {
        name: pair_quality(compare(model, policy, some, micro_batch_tokens=engine.micro_batch_tokens), seed=seed)
        for name, some in sides.items()
        if some
    }
    return model, {"steps": len(batches), **{f"{name}_pairs": len(some) for name, some in sides.items()}, **quality}


def required_margin(pair: Pair, *, scale: float) -> float:
    """What a label of this strength asks for. That noise flipped it is nothing a labeller would know: no sign."""
    return scale * abs(pair.margin)


def make_reward_batches(
    pairs: Sequence[tuple[Responses, float]], *, tokens: int, device: torch.device
) -> list[RewardBatch]:
    """Micro-batches, each of at most `tokens` tokens; pairs come with their required margin."""
    return [
        RewardBatch(
            pack([response for i in group for response in pairs[i][0]]).to(device),
            torch.tensor([pairs[i][1] for i in group], device=device),
        )
        for group in plan([pair for pair, _ in pairs], tokens=tokens)
    ]


def make_reward_loss(
    count: int, *, centering: float
) -> Callable[[nn.Module, RewardBatch], tuple[Tensor, dict[str, Tensor]]]:
    """Loss and metrics of a micro-batch, as additive parts of those of a batch of `count` pairs."""

    def loss_fn(model: nn.Module, batch: RewardBatch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = scores(model, batch.responses).view(-1, 2).unbind(1)
        loss_B = bradley_terry(chosen_B, rejected_B, batch.margin_B, centering=centering)
        return loss_B.sum() / count, {
            "reward/margin": (chosen_B - rejected_B).sum() / count,
            "reward/pair_accuracy": (chosen_B > rejected_B).sum() / count,
            "reward/level": 0.5 * (chosen_B + rejected_B).sum() / count,
        }

    return loss_fn


def margins(model: PreTrainedModel, pairs: Sequence[Responses], *, micro_batch_tokens: int) -> list[float]:
    """Reward of chosen minus rejected, in the order of `pairs`."""
    responses = [response for pair in pairs for response in pair]
    rewards = score_responses(model, responses, micro_batch_tokens=micro_batch_tokens)
    return [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]


def compare(
    model: PreTrainedModel, policy: Policy, pairs: Sequence[Pair], *, micro_batch_tokens: int
) -> list[Compared]:
    """The pairs in their order with what the model says of them; `policy` gives the tokenizer."""
    both = [pair_ids(policy.tokenizer, pair) for pair in pairs]
    found = margins(model, both, micro_batch_tokens=micro_batch_tokens)
    return [
        Compared(pair.problem_id, margin, pair.margin, length_gap(responses))
        for pair, margin, responses in zip(pairs, found, both, strict=True)
    ]


def length_gap(pair: Responses) -> float:
    """(chosen - rejected) / longer, in response tokens."""
    chosen, rejected = (len(response) for _, response in pair)
    return (chosen - rejected) / max(1, chosen, rejected)
