"""A Bradley-Terry reward model: the policy's body with a scalar head on the last token of the response.

Saved, it is an ordinary sequence classifier with one label. Its held-out accuracy is reported by length gap too, as
length is the commonest shortcut. What it learns is a difference: the level is fixed by centering alone.

Shapes: B pairs, T tokens, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.batching import micro_batches, pad
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.policy import Policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.engine.trainer import Trainer
from posttrain.evals.calibration import Forecast, ece
from posttrain.loops.clock import Clock
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.scoring import MICRO_BATCH_TOKENS, Response, epoch_batches, response_length
from posttrain.losses.preference import bradley_terry
from posttrain.records import Pair

CALIBRATION_BINS = 20
"""Over [0, 1], of which confidences fill the upper half."""
SIMILAR = 0.1
"""Responses whose lengths differ by at most this share of the longer one count as equally long."""

Responses = tuple[Response, Response]
"""Chosen and rejected."""


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    ids_BT: Tensor
    """2B rows: the chosen responses, then the rejected ones."""
    last_B: Tensor
    """Position of each row's last real token."""


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
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The reward model trained on the `train` pairs, and its quality on the `heldout` ones."""
    train = [pair_ids(policy.tokenizer, pair) for pair in pairs if pair.split == "train"]
    heldout = [pair_ids(policy.tokenizer, pair) for pair in pairs if pair.split == "heldout"]
    model = with_scalar_head(policy.model, seed=seed)
    batches = epoch_batches(len(train), size=section.batch_pairs, epochs=section.epochs, seed=seed)
    trainer = Trainer(model, optimizer=section.optimizer, total_steps=len(batches), engine=engine, seed=seed)
    if found := latest_checkpoint(checkpoints):
        trainer.load_state_dict(found[1]["trainer"])
    for step in range(trainer.steps_done, len(batches)):
        clock = Clock()
        chosen = [train[i] for i in batches[step]]
        parts = make_score_batches(chosen[rank() :: world_size()], tokens=micro_batch_tokens, device=model.device)
        stats = trainer.step(parts, make_reward_loss(len(chosen), centering=section.centering))
        measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
        tokens = sum(response_length(response) for pair in chosen for response in pair)
        log(measured | stats.metrics | clock.metrics(tokens=tokens), step + 1)
        if (step + 1) % save_every == 0 and step + 1 < len(batches):
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict()})
    quality = {
        name: pair_quality(margins(model, some, micro_batch_tokens=micro_batch_tokens), length_gaps(some))
        for name, some in (("train", train), ("heldout", heldout))
        if some
    }
    return model, {"steps": len(batches), "train_pairs": len(train), "heldout_pairs": len(heldout), **quality}


def scores(model: nn.Module, batch: ScoreBatch) -> Tensor:
    """Rewards (rows,) in fp32, read at the last token of each response."""
    body, head = model.get_submodule(str(model.base_model_prefix)), model.get_submodule("score")
    hidden_BTC = body(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    rows_B = torch.arange(len(batch.last_B), device=batch.last_B.device)
    rewards_B: Tensor = head(hidden_BTC[rows_B, batch.last_B]).float()[:, 0]
    return rewards_B


def make_score_batches(pairs: Sequence[Responses], *, tokens: int, device: torch.device) -> list[ScoreBatch]:
    """Micro-batches of like lengths, each of at most `tokens` padded tokens."""
    lengths = [2 * max(response_length(response) for response in pair) for pair in pairs]
    batches = []
    for group in micro_batches(lengths, tokens=tokens):
        rows = [prompt + response for side in (0, 1) for prompt, response in (pairs[i][side] for i in group)]
        ids_BT, mask_BT = pad(rows)
        batches.append(ScoreBatch(ids_BT.to(device), (mask_BT.sum(1) - 1).to(device)))
    return batches


def make_reward_loss(
    count: int, *, centering: float
) -> Callable[[nn.Module, ScoreBatch], tuple[Tensor, dict[str, Tensor]]]:
    """Loss and metrics of a micro-batch, as additive parts of those of a batch of `count` pairs."""

    def loss_fn(model: nn.Module, batch: ScoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = scores(model, batch).chunk(2)
        return bradley_terry(chosen_B, rejected_B, centering=centering).sum() / count, {
            "reward/margin": (chosen_B - rejected_B).sum() / count,
            "reward/pair_accuracy": (chosen_B > rejected_B).sum() / count,
            "reward/level": 0.5 * (chosen_B + rejected_B).sum() / count,
        }

    return loss_fn


def margins(model: PreTrainedModel, pairs: Sequence[Responses], *, micro_batch_tokens: int) -> list[float]:
    """Reward of chosen minus rejected, in the order of `pairs`."""
    values = [0.0] * len(pairs)
    lengths = [2 * max(response_length(response) for response in pair) for pair in pairs]
    for group in micro_batches(lengths, tokens=micro_batch_tokens):
        (batch,) = make_score_batches([pairs[i] for i in group], tokens=10**12, device=model.device)
        with torch.no_grad():
            chosen_B, rejected_B = scores(model, batch).chunk(2)
        # A single micro-batch is sorted by length, longest first, ties by index: as `group` is.
        for index, margin in zip(group, (chosen_B - rejected_B).tolist(), strict=True):
            values[index] = margin
    return values


def length_gaps(pairs: Sequence[Responses]) -> list[float]:
    """(chosen - rejected) / longer, in response tokens: negative where the shorter response was chosen."""
    lengths = [(len(chosen[1]), len(rejected[1])) for chosen, rejected in pairs]
    return [(chosen - rejected) / max(1, chosen, rejected) for chosen, rejected in lengths]


def pair_quality(margins_B: Sequence[float], gaps_B: Sequence[float]) -> dict[str, Any]:
    """Accuracy (ties are wrong), ties, log loss and calibration of P(chosen is better) = sigmoid(margin)."""
    buckets = {
        "chosen_shorter": [m for m, gap in zip(margins_B, gaps_B, strict=True) if gap < -SIMILAR],
        "similar_length": [m for m, gap in zip(margins_B, gaps_B, strict=True) if abs(gap) <= SIMILAR],
        "chosen_longer": [m for m, gap in zip(margins_B, gaps_B, strict=True) if gap > SIMILAR],
    }
    return {
        "accuracy": _accuracy(margins_B),
        "ties": sum(m == 0 for m in margins_B) / len(margins_B),
        "mean_margin": sum(margins_B) / len(margins_B),
        "log_loss": sum(_softplus(-m) for m in margins_B) / len(margins_B),
        "ece": calibration_error(margins_B),
        "accuracy_by_length": {name: _accuracy(bucket) for name, bucket in buckets.items() if bucket},
        "pairs_by_length": {name: len(bucket) for name, bucket in buckets.items()},
    }


def calibration_error(margins_B: Sequence[float]) -> float:
    """ECE of the confidence sigmoid(|margin|), in [0.5, 1], with which the model picks a side of each pair.

    Which response is called chosen is known beforehand, so it is the model's own pick that is right or wrong.
    """
    forecasts = [Forecast(i, 1.0 / (1.0 + math.exp(-min(abs(m), 700.0))), m > 0) for i, m in enumerate(margins_B)]
    return ece(forecasts, bins=CALIBRATION_BINS)


def _accuracy(margins_B: Sequence[float]) -> float:
    return sum(m > 0 for m in margins_B) / len(margins_B)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
