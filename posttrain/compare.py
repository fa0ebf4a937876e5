"""Two executions of the chain side by side, from their MLflow runs: stage x metric, no browser needed."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from posttrain.errors import StageError

SHOWN = (
    "eval/think/avg/value",
    "eval/think/tokens_mean",
    "eval/no_think/avg/value",
    "eval/mode_following",
)


def compare(uri: str, experiment: str, *, metrics: tuple[str, ...] = SHOWN) -> Table:
    """The last two executions; cached stages are marked with a star."""
    from posttrain.mlflow_sink import open_store  # imports MLflow, which most commands need not wait for

    client, experiment_id = open_store(uri, experiment)
    parents = client.search_runs([experiment_id], "tags.kind = 'chain'", order_by=["start_time DESC"], max_results=2)
    if len(parents) < 2:
        raise StageError(f"{experiment}: {len(parents)} executions recorded, wanted two")
    newer, older = ({stage_of(run): run for run in stage_runs(client, experiment_id, parent)} for parent in parents)
    table = Table(title=f"{parents[1].info.run_name} -> {parents[0].info.run_name}   (* cached)", title_justify="left")
    table.add_column("stage")
    for name in metrics:
        table.add_column(name.removeprefix("eval/"), justify="right")
    for stage in sorted(newer | older, key=lambda name: _start(newer, older, name)):
        cells = [_cell(older.get(stage), newer.get(stage), name) for name in metrics]
        if any(cells):
            table.add_row(stage, *cells)
    return table


def stage_runs(client: Any, experiment_id: str, parent: Any) -> list[Any]:
    """The runs of an execution's stages."""
    return list(client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"))


def stage_of(run: Any) -> str:
    """The stage that a run is of."""
    return str(run.data.tags.get("stage", run.info.run_name))


def _start(newer: dict[str, Any], older: dict[str, Any], stage: str) -> int:
    return int((newer.get(stage) or older[stage]).info.start_time) if stage in newer else 0


def _cell(before: Any, after: Any, metric: str) -> str:
    values = [run.data.metrics.get(metric) if run is not None else None for run in (before, after)]
    if values == [None, None]:
        return ""
    texts = ["-" if value is None else f"{value:.4g}" for value in values]
    star = "*" if after is not None and after.data.tags.get("dvc.cached") == "true" else ""
    return f"{texts[0]} -> {texts[1]}{star}" if texts[0] != texts[1] else f"{texts[1]}{star}"
