"""Four responses, the RL loss of some objectives and that of a value network, for one process and for two."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

from posttrain.engine.scalar_head import with_scalar_head
from posttrain.engine.trainer import StepStats, Trainer
from posttrain.loops.recipe import choose_recipe
from posttrain.loops.rl_step import Counts, MicroBatch, Trajectory, make_loss, make_micro_batches
from posttrain.loops.rl_value import make_value_loss
from posttrain.losses.reduce import Denominators
from posttrain.records import Rollout
from tests.engine.conftest import micro_model
from tests.engine.training import trainer_of
from tests.loops.toy import rl_section

OBJECTIVES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "kimi_k15", "rloo")
"""All aggregates, ratios and clips, and a KL in the loss."""
LENGTHS = (3, 9, 1, 5)
COUNTS = Counts(Denominators(len(LENGTHS), sum(LENGTHS), 12), sum(LENGTHS))
"""Of all four responses, whoever trains on them."""


def trajectories() -> list[Trajectory]:
    """Old and reference log-probabilities are made up, near those of a model that knows nothing."""
    rng = random.Random(0)

    def scores(length: int) -> torch.Tensor:
        return torch.tensor([-4.0 + rng.uniform(-0.3, 0.3) for _ in range(length)])

    made = []
    for number, length in enumerate(LENGTHS):
        ids = [rng.randrange(3, 64) for _ in range(2 + length)]
        sampled = tuple(scores(length).tolist())
        rollout = Rollout(f"p{number}", tuple(ids[:2]), tuple(ids[2:]), sampled, "stop", (0,) * length)
        advantages = torch.full((length,), rng.uniform(-1.0, 1.0))
        made.append(Trajectory(rollout, advantages, scores(length), scores(length)))
    return made


def valued_trajectories() -> list[Trajectory]:
    """The same with made-up values and returns; some values are beyond the clip of a new head's, some are not."""
    rng = random.Random(1)

    def spread(length: int, most: float) -> torch.Tensor:
        return torch.tensor([rng.uniform(-most, most) for _ in range(length)])

    return [
        dataclasses.replace(item, values=spread(length, 0.5), returns=spread(length, 2.0))
        for item, length in zip(trajectories(), LENGTHS, strict=True)
    ]


def micro_batches(items: list[Trajectory], *, tokens: int) -> list[MicroBatch]:
    return make_micro_batches(items, tokens=tokens, device=torch.device("cpu"))


def rl_step(name: str, own: list[MicroBatch]) -> dict[str, Any]:
    """One step of a fresh trainer, with the denominators of all four responses, on this process's part of them."""
    recipe = choose_recipe(rl_section(name).objective, group_size=4)
    trainer = trainer_of(micro_model())
    return outcome(trainer, trainer.step(own, make_loss(recipe, COUNTS, temperature=1.0)))


def value_step(own: list[MicroBatch]) -> dict[str, Any]:
    """One step of a fresh value network, likewise."""
    trainer = trainer_of(with_scalar_head(micro_model(), seed=3))
    return outcome(trainer, trainer.step(own, make_value_loss(COUNTS, clip=0.2)))


def outcome(trainer: Trainer, stats: StepStats) -> dict[str, Any]:
    """What a first step was, for comparison."""
    # After one step AdamW's first moments are 1 - beta times the gradient; its step itself enlarges rounding errors.
    gradient = torch.cat([moments["exp_avg"].flatten() for moments in trainer.state_dict()["moments"]])
    return {"loss": stats.loss, "norm": stats.grad_norm, "metrics": stats.metrics, "gradient": gradient}
