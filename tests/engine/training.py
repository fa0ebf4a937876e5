"""What the trainer tests share: a loss with its global denominator, and batches for it."""

from __future__ import annotations

import random
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.config import Engine, Optimizer
from posttrain.engine.trainer import Trainer
from tests.plain import pad, sequence_logprobs

Item = tuple[Tensor, Tensor, float]
"""ids_BT, mask_BT, tokens of the whole batch."""


def loss_fn(model: nn.Module, item: Item) -> tuple[Tensor, dict[str, Tensor]]:
    ids_BT, mask_BT, total = item
    assert isinstance(model, PreTrainedModel)
    logprobs_BT = sequence_logprobs(model, ids_BT, mask_BT, temperature=1.0)
    return -logprobs_BT.sum() / total, {"tokens": mask_BT[:, 1:].sum()}


def batch(parts: int, seed: int = 0) -> list[Item]:
    """The same eight sequences, in `parts` micro-batches."""
    rng = random.Random(seed)
    sequences = [[rng.randrange(3, 64) for _ in range(rng.randint(4, 12))] for _ in range(8)]
    total = float(sum(len(ids) - 1 for ids in sequences))
    size = len(sequences) // parts
    return [(*pad(sequences[start : start + size]), total) for start in range(0, len(sequences), size)]


def optimizer(**changes: Any) -> Optimizer:
    fields: dict[str, Any] = {
        "kind": "adamw",
        "lr": 1e-2,
        "schedule": "linear",
        "warmup": 0.2,
        "final_lr_ratio": 0.1,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "grad_clip": 0.5,
    }
    return Optimizer(**(fields | changes))


def trainer_of(
    model: PreTrainedModel, *, precision: Literal["fp32", "bf16"] = "fp32", zero_stage: int = 0, **changes: Any
) -> Trainer:
    engine = Engine(
        precision=precision,
        zero_stage=zero_stage,
        micro_batch_tokens=4096,
        rollout="transformers",
        rollout_batch=8,
        canary_tolerance=1e-3,
    )
    return Trainer(model, optimizer=optimizer(**changes), total_steps=10, engine=engine, seed=0)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().float().clone() for name, tensor in trainer.model.state_dict().items()}


def largest_gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def plain_steps(model: PreTrainedModel, batches: list[list[Item]], rates: list[float]) -> dict[str, Tensor]:
    """The same training in torch alone."""
    chosen = optimizer()
    adamw = torch.optim.AdamW(model.parameters(), betas=chosen.betas, weight_decay=chosen.weight_decay)
    for items, rate in zip(batches, rates, strict=True):
        for item in items:
            loss_fn(model, item)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.grad_clip)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        adamw.zero_grad()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
