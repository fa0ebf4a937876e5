"""Seconds of an execution, from its MLflow runs."""

import pytest

from benchmarks.levers_page import overheads_section
from benchmarks.overheads import measure_overheads, rows
from benchmarks.side import BenchmarkError
from posttrain.evals.inputs import Source
from posttrain.mlflow_sink import open_store

EXPERIMENT = "posttrain/tiny"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def record(store, name: str, *, cached: bool) -> None:
    """Ten seconds: sft for four, a second after the start; grpo for three, half a second later."""
    client, experiment = open_store(store, EXPERIMENT)
    parent = client.create_run(experiment, start_time=1000, run_name=name, tags={"kind": "chain"})
    for stage, start, end in (("sft", 2000, 6000), ("grpo", 6500, 9500)):
        tags = {"mlflow.parentRunId": parent.info.run_id, "stage": stage, "profile": "tiny"}
        run = client.create_run(
            experiment, start_time=start, run_name=stage, tags={**tags, "dvc.cached": str(cached).lower()}
        )
        for step in range(2 * (not cached)):
            client.log_metric(run.info.run_id, "time/step", 1.25, step=step)
            if stage == "grpo":
                client.log_metric(run.info.run_id, "time/generate", 0.5, step=step)
        client.set_terminated(run.info.run_id, end_time=end)
    client.set_terminated(parent.info.run_id, end_time=11000)


def test_the_last_execution_from_scratch_counts(store):
    record(store, "first", cached=False)
    record(store, "second", cached=True)
    result = measure_overheads(store, EXPERIMENT)
    assert (result["execution"], result["profile"], result["seconds"]) == ("first", "tiny", 10.0)
    assert rows(Source("overheads.json", result))[1:] == [
        ("sft", "1.0", "4.0", "2.5", "-", "1.5"),
        ("grpo", "0.5", "3.0", "2.5", "generate 1", "0.5"),
        ("all", "1.5", "7.0", "5.0", "-", "2.0"),
    ]


def test_what_overlapping_verdicts_could_save_is_said_of_each_stage_that_has_them():
    stages = [
        {"stage": "sft", "before": 1.0, "total": 4.0, "steps": 2.5, "parts": {}},
        {"stage": "grpo", "before": 0.5, "total": 30.0, "steps": 20.0, "parts": {"generate": 9.0, "reward": 1.0}},
    ]
    page = overheads_section(Source("x", {"execution": "a", "profile": "tiny", "seconds": 40.0, "stages": stages}))
    assert "1.0 s of the 20 s in optimizer steps of `grpo`, 5 %" in page
    assert page.count("To overlap") == 1


def test_without_an_execution_it_is_said_what_is_wanted(store):
    record(store, "second", cached=True)
    with pytest.raises(BenchmarkError, match="wanted: a `make run` from scratch"):
        measure_overheads(store, EXPERIMENT)
