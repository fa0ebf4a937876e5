"""Where the seconds of the last `make run` went, stage by stage, from its MLflow runs: work, and what is around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.side import BenchmarkError
from posttrain.compare import stage_of, stage_runs
from posttrain.mlflow_sink import open_store

PARTS = ("generate", "reward", "update", "sync")
"""Of an optimizer step, where its loop tells them apart."""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    stage: str
    before: float
    """Since the end of the stage before: gates, DVC (what is stale, hashes of outputs), start of Python, imports."""
    total: float
    """From the start of its MLflow run to its end."""
    steps: float
    """In optimizer steps, sampling and verdicts included."""
    parts: dict[str, float]


def measure_overheads(uri: str, experiment: str) -> dict[str, Any]:
    """The last execution from scratch; raises BenchmarkError where there is none."""
    client, experiment_id = open_store(uri, experiment)
    parents = client.search_runs([experiment_id], "tags.kind = 'chain'", order_by=["start_time DESC"])
    for parent in parents:
        children = sorted(stage_runs(client, experiment_id, parent), key=lambda run: run.info.start_time)
        ended = parent.info.end_time and children and all(run.info.end_time for run in children)
        if ended and children[0].data.tags.get("dvc.cached") != "true":
            return report(client, parent, children)
    raise BenchmarkError(f"{experiment}: no execution whose first stage ran; wanted: a `make run` from scratch")


def report(client: Any, parent: Any, children: Sequence[Any]) -> dict[str, Any]:
    """Seconds of an execution and of its stages, in their order."""
    stages, end = [], parent.info.start_time
    for run in children:
        sums = {name: _summed(client, run, f"time/{name}") for name in ("step", *PARTS)}
        stages.append(
            StageSeconds(
                stage_of(run),
                (run.info.start_time - end) / 1000,
                (run.info.end_time - run.info.start_time) / 1000,
                sums["step"],
                {name: sums[name] for name in PARTS if sums[name]},
            )
        )
        end = run.info.end_time
    return {
        "execution": parent.info.run_name,
        "profile": children[0].data.tags["profile"],
        "seconds": (parent.info.end_time - parent.info.start_time) / 1000,
        "stages": [asdict(stage) for stage in stages],
    }


def _summed(client: Any, run: Any, metric: str) -> float:
    """Over all steps."""
    if metric not in run.data.metrics:
        return 0.0
    return float(sum(point.value for point in client.get_metric_history(run.info.run_id, metric)))


def rows(result: Any) -> list[tuple[str, ...]]:
    """Of the table: one per stage, and their sum."""
    made: list[tuple[str, ...]] = [("stage", "before it", "in it", "in optimizer steps", "of which", "else")]
    stages = result.need("stages")
    for stage in stages:
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in stage["parts"].items())
        made.append(_row(stage["stage"], stage["before"], stage["total"], stage["steps"], parts))
    before, total, steps = (sum(stage[key] for stage in stages) for key in ("before", "total", "steps"))
    return [*made, _row("all", before, total, steps, "")]


def _row(name: str, before: float, total: float, steps: float, parts: str) -> tuple[str, ...]:
    shown = f"{steps:.1f}" if steps else "-"
    return name, f"{before:z.1f}", f"{total:z.1f}", shown, parts or "-", f"{total - steps:z.1f}"
