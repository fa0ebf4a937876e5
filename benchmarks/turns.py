"""How a worker does one step at a time, when told to: lines of JSON over its standard input and output.

Both sides are run through the loop that their users call; the step's end is where it reports its metrics. There the
worker stops its clock, answers, and waits for the other side's step and its own next turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TextIO

GO = "go"
NOTHING: Mapping[str, float] = MappingProxyType({})


class Stopped(Exception):
    """No further step is wanted."""


class Turns(Protocol):
    def begin(self) -> None:
        """The side is built: wait for the first turn."""
        ...

    def done(self, values: Sequence[float], parts: Mapping[str, float] = NOTHING) -> None:
        """A step ends: `values` is what the parity gate compares, `parts` where the seconds went. Waits."""
        ...


class PipeTurns:
    """Turns that the parent process gives."""

    def __init__(self, commands: TextIO, answers: TextIO, *, synchronise: Callable[[], None]) -> None:
        self._commands, self._answers, self._synchronise = commands, answers, synchronise
        self._started = 0.0

    def begin(self) -> None:
        self.answer({"ready": True})
        self._wait()

    def done(self, values: Sequence[float], parts: Mapping[str, float] = NOTHING) -> None:
        self._synchronise()
        seconds = time.perf_counter() - self._started
        self.answer({"seconds": seconds, "values": list(values), "parts": dict(parts)})
        self._wait()

    def answer(self, message: Mapping[str, object]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        if self._commands.readline().strip() != GO:
            raise Stopped
        self._started = time.perf_counter()


class TimedTurns:
    """Turns that follow one another, until enough are timed: of a process that no other takes turns with."""

    def __init__(self, *, warmup: int, steps: int, seconds: float, synchronise: Callable[[], None]) -> None:
        self._warmup, self._steps, self._enough, self._synchronise = warmup, steps, seconds, synchronise
        self._taken: list[float] = []
        self._started = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        return self._taken[self._warmup :]

    def begin(self) -> None:
        self._started = time.perf_counter()

    def done(self, values: Sequence[float], parts: Mapping[str, float] = NOTHING) -> None:
        self._synchronise()
        self._taken.append(time.perf_counter() - self._started)
        if len(self.seconds) >= self._steps and sum(self.seconds) >= self._enough:
            raise Stopped
        self._started = time.perf_counter()
