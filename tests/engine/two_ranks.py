"""Two training processes on this machine: `python -m tests.engine.two_ranks FOLDER`.

Rank 0 takes three of the four micro-batches and rank 1 one, so that the ranks also differ in their number. Each also
saves its part of a checkpoint and reads it back. Of the four responses of an RL step each rank takes two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch

from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.ranks import start_ranks
from tests.engine.conftest import micro_model
from tests.engine.rl_training import OBJECTIVES, micro_batches, rl_step, trajectories, value_step, valued_trajectories
from tests.engine.training import batch, loss_fn, trainer_of, weights

ENGINES: tuple[tuple[Literal["fp32", "bf16"], int], ...] = (("fp32", 0), ("fp32", 2), ("bf16", 0), ("bf16", 2))
"""Precisions and ZeRO stages."""


def train(rank: int, folder: Path) -> None:
    for number, (precision, zero_stage) in enumerate(ENGINES):
        trainer = trainer_of(micro_model(), precision=precision, zero_stage=zero_stage)
        parts = slice(0, 3) if rank == 0 else slice(3, 4)
        stats = [trainer.step(batch(4, seed)[parts], loss_fn) for seed in range(2)]
        result = {
            "losses": [s.loss for s in stats],
            "norms": [s.grad_norm for s in stats],
            "tokens": [s.metrics["tokens"] for s in stats],
            "weights": weights(trainer),
        }
        save_checkpoint(folder / "checkpoints", number, {"rank": rank})
        found = latest_checkpoint(folder / "checkpoints")
        assert found == (number, {"rank": rank}), found
        torch.save(result, folder / f"{precision}-{zero_stage}-{rank}.pt")
    train_rl(rank, folder)


def train_rl(rank: int, folder: Path) -> None:
    """A step on every objective's loss and on the value network's.

    Rank 1 cuts its two responses into two micro-batches, rank 0 does not.
    """
    tokens = 1 if rank else 4096
    for name in OBJECTIVES:
        torch.save(rl_step(name, micro_batches(trajectories()[rank::2], tokens=tokens)), folder / f"{name}-{rank}.pt")
    own = micro_batches(valued_trajectories()[rank::2], tokens=tokens)
    torch.save(value_step(own), folder / f"value-{rank}.pt")


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = start_ranks(2, folder / "ranks")
    train(ranks.rank, folder)
    ranks.wait()


if __name__ == "__main__":
    main()
