"""A stage of two processes for tests/test_ranks.py: `python -m tests.ranks_job CASE`, in a project folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

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


def wait(job: Job) -> None:
    from posttrain.engine.distributed import gather_objects

    Path(f"pid-{rank()}").write_text(str(os.getpid()))
    if rank() == 1:
        time.sleep(600)
    gather_objects(0)


def late(job: Job) -> None:
    if rank() == 1:
        raise ZeroDivisionError("after the last exchange")


if __name__ == "__main__":
    with open_job("sft", parallel=True) as job:
        {f.__name__: f for f in (shares, crash, bad_input, one_knows_why, wait, late)}[sys.argv[1]](job)
