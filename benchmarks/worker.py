"""One side of one case in its own process: `python -m benchmarks.worker JSON`; started by benchmarks.measure.

Standard output carries the answers, so whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.settings import Case, load_settings
from benchmarks.turns import PipeTurns, Stopped
from benchmarks.world import Work, make_groups, plain_tokens, profile_params
from posttrain.config import Params

WHOLE = 2**20
"""Tokens that no step of a case has."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the parent asks for, as JSON."""

    side: Literal["ours", "trl"]
    settings: str
    model: str
    case: Case
    folder: str
    precision: str
    peer_batch: int
    steps: int


def main() -> int:
    order = Order(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    turns = PipeTurns(sys.stdin, answers, synchronise=synchronise)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run_of(order)(make_work(order, Path(scratch)), turns)
        except Stopped:
            turns.answer({"peak": peak_bytes()})
            return 0
    print(f"no more than {order.steps} steps were prepared", file=sys.stderr)
    return 1


def run_of(order: Order) -> Any:
    """The side's function; the other side's libraries are not imported."""
    if order.side == "ours":
        from benchmarks.ours import RUNS
    else:
        from benchmarks.peer import RUNS
    return RUNS[order.case]


def make_work(order: Order, scratch: Path) -> Work:
    settings = load_settings(Path(order.settings))
    model = settings.models[order.model]
    size = model.cases[order.case]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(order.folder)
    params = profile_params(model.profile)
    # On a GPU a pass takes the whole step, as the peer's does there.
    pass_tokens = WHOLE if torch.cuda.is_available() else size.pass_tokens
    return Work(
        folder=Path(order.folder),
        params=params if pass_tokens is None else in_passes(params, pass_tokens),
        size=size,
        groups=make_groups(size, plain_tokens(tokenizer), seed=settings.seed),
        precision=order.precision,
        peer_batch=order.peer_batch,
        sequence_length=model.sequence_length,
        lr=model.lr,
        steps=order.steps,
        seed=settings.seed,
        scratch=scratch,
    )


def in_passes(params: Params, tokens: int) -> Params:
    """The same with forward passes of at most so many tokens."""
    return params.model_copy(update={"engine": params.engine.model_copy(update={"micro_batch_tokens": tokens})})


def peak_bytes() -> int:
    """Largest memory so far: of the device where there is one, else what of this process was resident (VmHWM).

    Not ru_maxrss, which a child process inherits from its parent.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
