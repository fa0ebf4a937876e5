"""The parent's end of a worker: start it, give it a turn, stop it; every wait has a deadline."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.turns import GO
from benchmarks.worker import Order
from posttrain.system import MARK, System, environment

_LOG_LINES = 15


class BenchmarkError(RuntimeError):
    """A side that failed or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Step:
    seconds: float
    values: list[float]
    """What the parity gate compares."""
    parts: dict[str, float]
    """Where the seconds went, as far as the side says."""


def worker_environment() -> dict[str, str]:
    """The same for both sides: allocator and threads as posttrain.system sets them, and no hub."""
    return os.environ | environment(System()) | {MARK: "1", "HF_HUB_OFFLINE": "1"}


class Side:
    """A running worker."""

    def __init__(self, order: Order, *, log: Path, deadline: float) -> None:
        self.name = f"{order.model} {order.case}, {order.side} in {order.precision}"
        self._log, self._deadline = log, deadline
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=worker_environment(),
            )

    def wait_until_ready(self) -> None:
        """Before the first step: imports and weights."""
        self._answer()

    def step(self) -> Step:
        self._say(GO)
        message = self._answer()
        return Step(message["seconds"], message["values"], message["parts"])

    def stop(self) -> int:
        """End the worker; its largest memory, in bytes."""
        self._say("stop")
        peak = int(self._answer()["peak"])
        self._process.wait(self._deadline)
        return peak

    def kill(self) -> None:
        """At the latest now; harmless where it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()

    def _say(self, word: str) -> None:
        pipe = _pipe(self._process.stdin)
        try:
            pipe.write(word + "\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise self._failure("has ended") from error

    def _answer(self) -> dict[str, Any]:
        out = _pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            if not selector.select(self._deadline):
                raise self._failure(f"gave no answer within {self._deadline:g} s")
        line = out.readline()
        if not line:
            raise self._failure("has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, what: str) -> BenchmarkError:
        # What the worker still has to say about its end.
        until = time.monotonic() + 5.0
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return BenchmarkError("\n".join([f"{self.name}: {what}; {self._log}:", *lines]))


def run_json(
    module: str, arguments: Sequence[str] = (), *, deadline: float, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON that a module prints last, run in the workers' environment, or with other `variables`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=worker_environment() if variables is None else dict(variables),
            capture_output=True,
            text=True,
            timeout=deadline,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{module}: gave no answer within {deadline:g} s") from error
    if done.returncode:
        raise BenchmarkError(f"{module}: ended with status {done.returncode}\n{done.stderr.strip()}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise BenchmarkError("a worker without pipes; wanted: one that was started here")
    return pipe
