"""One lever: what it is, and its row of the table. All of them: benchmarks.levers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import median_ratio
from benchmarks.machine import has_bf16
from benchmarks.settings import Settings
from benchmarks.side import run_json, worker_environment
from posttrain.system import ALLOCATOR, LARGE_PAGES, SPIN


@dataclass(frozen=True, slots=True)
class Variables:
    """A lever of the environment, which a process reads when it starts."""

    name: str
    instead: str
    names: tuple[str, ...]
    """Of the variables that it sets."""


ENVIRONMENT = (
    Variables(
        "allocator keeps large blocks",
        "the allocator's defaults: blocks go back to the kernel at every free",
        tuple(ALLOCATOR),
    ),
    Variables("pages of 2 MiB", "the kernel's pages of 4 KiB", (LARGE_PAGES,)),
    Variables("threads wait before they sleep", "a thread out of work sleeps at once", (SPIN,)),
)


@dataclass(frozen=True, slots=True)
class Lever:
    instead: str
    """What is done without it."""
    on: Callable[[], object]
    off: Callable[[], object]
    predicted: float | None
    own_cost: float | None = None
    """Seconds that it takes once, before it saves any."""
    kept: tuple[int, int] | None = None
    """Bytes that a forward pass keeps for the backward pass, with and without it."""


def measure_levers(
    settings: Settings, file: Path, model: str, folder: Path, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Levers and a profile of a step: in a process of its own, and for those of the environment in one per measurement.

    `only`: parts of the names of those wanted; none: all.
    """
    precision = settings.models[model].precision_here(has_bf16())
    order = {"settings": str(file), "model": model, "folder": str(folder), "only": list(only), "precision": precision}
    measured = run_json("benchmarks.levers", [json.dumps(order)], deadline=settings.deadline)
    size = settings.models[model].cases["grpo_update"].model_dump(mode="json")
    started = [environment_lever(lever, settings, order) for lever in ENVIRONMENT if is_wanted(lever.name, only)]
    return measured | {"levers": [*started, *measured["levers"]], "model": model, "size": size, "precision": precision}


def is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(part in name for part in only)


def environment_lever(lever: Variables, settings: Settings, order: Mapping[str, Any]) -> dict[str, Any]:
    """Its row, by processes with its variables and without."""
    tuned, plain = worker_environment(), worker_environment()
    for name in lever.names:
        del plain[name]
    taken: list[list[float]] = [[], []]
    for _ in range(settings.pairs):
        for side, variables in enumerate((tuned, plain)):
            arguments = [json.dumps({**order, "step_only": True})]
            found = run_json("benchmarks.levers", arguments, deadline=settings.deadline, variables=variables)
            taken[side].append(found["seconds"])
    return {
        "name": lever.name,
        "instead": lever.instead,
        "predicted": None,
        "own_cost": None,
        "kept": None,
        **compared(*taken, settings=settings),
    }


def in_turns(lever: Lever, *, pairs: int) -> list[list[float]]:
    """Seconds with and without, one after the other, after one of each that does not count."""
    taken: list[list[float]] = [[], []]
    for number in range(1 + pairs):
        for side, work in enumerate((lever.on, lever.off)):
            started = time.perf_counter()
            work()
            if number:
                taken[side].append(time.perf_counter() - started)
    return taken


def compared(seconds: Sequence[float], without: Sequence[float], *, settings: Settings) -> dict[str, Any]:
    """Of a lever's row: what was measured."""
    ratio = median_ratio(seconds, without, draws=settings.bootstrap, seed=settings.seed)
    return {"seconds": list(seconds), "seconds_without": list(without), "ratio": ratio.to_json()}


@contextmanager
def changed(module: Any, name: str, value: float) -> Iterator[None]:
    """A module's constant, set for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def under(module: Any, name: str, value: float, work: Callable[[], object]) -> Callable[[], None]:
    """The work while a module's constant is another."""

    def done() -> None:
        with changed(module, name, value):
            work()

    return done
