"""How our GRPO update on given responses grows: with the model, and with the responses' length and numbers.

One thing at a time, on the axes of benchmarks/params.yaml, and without a peer. Every point is a process of its own, so
that its peak memory is that point's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.arithmetic import BACKWARD, Shape, forward_operations
from benchmarks.measure import Note
from benchmarks.settings import Axis, Growth, Point, Precision, Settings
from benchmarks.side import BenchmarkError, run_json
from benchmarks.world import build_policy, profile_params, shape_of
from posttrain import config
from posttrain.config import ConfigError, Params
from posttrain.engine.policy import save_policy

PRECISION: Precision = "fp32"


@dataclass(frozen=True, slots=True)
class Order:
    """Which point a process measures."""

    settings: str
    """File."""
    axis: Axis
    number: int
    """Of the point on its axis, from 0."""
    folder: str
    """Of its model."""


def measure_growth(settings: Settings, file: Path, models: Path, note: Note) -> tuple[dict[str, Any], list[str]]:
    """The axes measured, and the failures, each of which costs the axis on which it is.

    `file`: what the settings were read from, which the points' processes read again. `models`: a folder for the models.
    """
    growth, deadline = settings.growth, settings.deadline
    shapes = {name: make_model(settings, name, models / name) for name in growth.models}
    before = run_json("benchmarks.rates", deadline=deadline)[PRECISION]
    axes: dict[Axis, list[dict[str, Any]]] = {}
    failures: list[str] = []
    for axis, points in growth.axes.items():
        orders = [Order(str(file), axis, number, str(models / point.model)) for number, point in enumerate(points)]
        try:
            axes[axis] = [
                point_report(axis, point, shapes[point.model], run_point(order, deadline=deadline))
                for point, order in zip(points, orders, strict=True)
            ]
        except BenchmarkError as error:
            note(f"growth, {axis}: failed")
            failures.append(f"growth, {axis}: {error}")
            continue
        seconds = ", ".join(f"{point['median']:.3g}" for point in axes[axis])
        note(f"growth, {axis}: {seconds} s per step")
    after = run_json("benchmarks.rates", deadline=deadline)[PRECISION]
    return conditions(growth, shapes) | {"rate": max(before, after), "axes": axes}, failures


def conditions(growth: Growth, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What holds for every point; the vocabulary is that of the profile."""
    return {
        "precision": PRECISION,
        "vocabulary": next(iter(shapes.values())).vocabulary,
        "micro_batch_tokens": profile_params(growth.profile).engine.micro_batch_tokens,
        "warmup": growth.warmup,
        "steps": growth.steps,
        "seconds": growth.seconds,
    }


def make_model(settings: Settings, name: str, folder: Path) -> Shape:
    """Build one of the models, with random weights."""
    save_policy(build_policy(params_of(settings.growth, name), seed=settings.seed), folder)
    return shape_of(folder)[0]


def params_of(growth: Growth, name: str) -> Params:
    """The profile with a model of the growth."""
    params = profile_params(growth.profile)
    if not isinstance(params.base, config.ScratchBase):
        raise ConfigError(
            f"growth.profile: got {growth.profile!r}, whose base.kind is {params.base.kind}; wanted one with "
            "base.kind scratch, as the models are built from nothing"
        )
    return params.model_copy(update={"base": params.base.model_copy(update={"model": growth.models[name]})})


def run_point(order: Order, *, deadline: float) -> dict[str, Any]:
    """Seconds of every timed step, and the peak memory in bytes; raises BenchmarkError naming the point."""
    try:
        return run_json("benchmarks.growth_point", [json.dumps(asdict(order))], deadline=deadline)
    except BenchmarkError as error:
        raise BenchmarkError(f"point {order.number}: {error}") from error


def point_report(axis: Axis, point: Point, shape: Shape, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was done, how long it took and what it needed."""
    seconds: Sequence[float] = measured["seconds"]
    return {
        **point.model_dump(mode="json"),
        "value": shape.parameters if axis == "parameters" else getattr(point, axis),
        "parameters": shape.parameters,
        "tokens": point.tokens,
        "operations": operations(shape, point),
        "timed": len(seconds),
        "median": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "peak": measured["peak"],
    }


def operations(shape: Shape, point: Point) -> float:
    """Of a step, forward and backward."""
    lengths = [point.response_tokens] * point.group
    forward = forward_operations(shape, point.prompt_tokens, lengths, scored=sum(lengths))
    return (1 + BACKWARD) * point.prompts * forward
