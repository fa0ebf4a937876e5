"""A stage of two processes for tests/test_ranks.py: `python -m tests.ranks_job CASE`, in a project folder."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from posttrain.errors import NonFiniteError
from posttrain.job import Job, open_job
from posttrain.records import DataError


def rank() -> int:
    return int(os.environ["RANK"])


def shares(job: Job) -> None:
    from posttrain.engine.distributed import share_out  # here: half of the cases are over sooner without torch

    squares = share_out(range(5), lambda own: [(number * number, os.getpid()) for number in own])
    job.note("once")
    job.log({"train/loss": 1.0}, step=1, total=1)
    with job.publish_file(Path("data/squares.txt")) as file:
        file.write_text(str([square for square, _ in squares]))
    job.report({"processes": len({pid for _, pid in squares})})


def crash(job: Job) -> None:
    from posttrain.engine.distributed import gather_objects

    if rank() == 1:
        raise ZeroDivisionError("one over nothing")
    gather_objects(0)


def bad_input(job: Job) -> None:
    raise DataError("data.jsonl:3: field 'answer': got nothing, wanted text")


def one_knows_why(job: Job) -> None:
    raise NonFiniteError("loss is nan" if rank() == 0 else "loss is nan; the response at fault: work/nonfinite-1.jsonl")


def nan_loss(job: Job) -> None:
    """One micro-batch of the second rank has a loss that is no number."""
    from tests.engine.training import loss_fn

    _step(bad=lambda model, item: loss_fn(model, (*item[:2], float("nan"))))


def nan_gradient(job: Job) -> None:
    """One micro-batch of the second rank has a loss of 0 with an infinite slope."""
    from tests.engine.training import loss_fn

    def steep(model: Any, item: Any) -> Any:
        loss, metrics = loss_fn(model, item)
        return (loss - loss.detach()).sqrt(), metrics

    _step(bad=steep)


def _step(*, bad: Any) -> None:
    """Two micro-batches on each rank; leaves by how much the step has changed the weights."""
    from tests.engine.conftest import micro_model
    from tests.engine.training import batch, largest_gap, loss_fn, trainer_of, weights

    trainer = trainer_of(micro_model())
    before, own = weights(trainer), batch(4)[2 * rank() : 2 * rank() + 2]
    last = own[-1]
    try:
        trainer.step(own, lambda model, item: (bad if rank() == 1 and item is last else loss_fn)(model, item))
    finally:
        Path(f"changed-{rank()}").write_text(str(largest_gap(before, weights(trainer))))


def full_disk(job: Job) -> None:
    """Continues, then saves a small checkpoint and one for which there is no room."""
    import torch

    from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint

    found = latest_checkpoint(job.checkpoints)
    job.note(f"continues from step {found[0] if found else 0}")
    if found is None:
        save_checkpoint(job.checkpoints, 3, {"weights": torch.zeros(10)})
        save_checkpoint(job.checkpoints, 6, {"weights": torch.zeros(1_000_000)})


def wait(job: Job) -> None:
    from posttrain.engine.distributed import gather_objects

    Path(f"pid-{rank()}").write_text(str(os.getpid()))
    if rank() == 1:
        time.sleep(600)
    gather_objects(0)


def late(job: Job) -> None:
    if rank() == 1:
        raise ZeroDivisionError("after the last exchange")


def alone(job: Job) -> None:
    job.note("once")
    job.report({"processes": int(os.environ["WORLD_SIZE"])})


if __name__ == "__main__":
    if sys.argv[1].startswith("nan"):
        import_module("tests.engine.training")  # before the copies are made, which then share it
    with open_job("sft", parallel=sys.argv[1] != "alone") as job:
        cases = (shares, crash, bad_input, one_knows_why, nan_loss, nan_gradient, full_disk, wait, late, alone)
        {case.__name__: case for case in cases}[sys.argv[1]](job)
