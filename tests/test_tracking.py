"""Tracking never stops training, loses nothing, and its store survives several first users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from posttrain import tracking
from posttrain.mlflow_sink import Forwarder, open_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for the module: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forward(uri: str, *spools: Path) -> None:
    closing = threading.Event()
    closing.set()
    Forwarder(uri).run(closing, list(spools), threading.Lock())


def spool(name: str, experiment: str, parent: Path | None = None) -> tracking.Tracker:
    return tracking.new_spool(name, experiment=experiment, tags={"stage": name}, parent=parent)


def runs(uri: str, experiment: str) -> list[Any]:
    client, experiment_id = open_store(uri, experiment)
    return list(client.search_runs([experiment_id], order_by=["start_time ASC"]))


def test_everything_arrives(store: str, tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("step\n1\n")
    parent = spool("chain", "arrives")
    parent.params({"seed": 1})
    child = spool("sft", "arrives", parent.spool)
    child.log({"train/loss": 2.0, "reward/none": float("nan")}, 1, 2)
    child.log({"train/loss": 1.0}, 2, 2)
    child.params({"sft.lr": 0.1})
    child.artifact(tmp_path / "curve.csv", "curves")
    child.table("samples", [{"prompt": "1+1", "right": True}, {"prompt": "1+2", "tokens": 3}])
    child.inputs({"data/curated": "abc123.dir"})
    child.end("FINISHED")
    parent.end("FINISHED")
    assert parent.spool is not None
    assert child.spool is not None
    forward(store, parent.spool, child.spool)

    whole, part = sorted(runs(store, "arrives"), key=lambda run: run.info.run_name)
    assert part.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert part.data.metrics == {"train/loss": 1.0}
    assert part.data.params == {"sft.lr": "0.1"}
    assert [item.dataset.digest for item in part.inputs.dataset_inputs] == ["abc123.dir"]
    assert {part.info.status, whole.info.status} == {"FINISHED"}
    assert whole.info.start_time <= part.info.start_time <= part.info.end_time <= whole.info.end_time
    client = MlflowClient(store)
    assert [m.value for m in client.get_metric_history(part.info.run_id, "train/loss")] == [2.0, 1.0]
    assert {item.path for item in client.list_artifacts(part.info.run_id)} == {"curves", "tables"}
    assert not list(Path(".work/track").iterdir()), "what has arrived is removed"


def test_a_stage_that_did_not_run_names_the_run_that_did(store: str) -> None:
    for cached in ("false", "true"):
        tracker = spool(f"cached-{cached}", "cached")
        tracker.tags({"dvc.cached": cached, "dvc.stage_hash": "h1"})
        if cached == "true":
            tracker.cached("h1")
        tracker.end("FINISHED")
        assert tracker.spool is not None
        forward(store, tracker.spool)
    ran, restored = sorted(runs(store, "cached"), key=lambda run: run.info.run_name)
    assert restored.data.tags["source_run_id"] == ran.info.run_id


def test_a_dead_store_costs_a_warning_and_nothing_else(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = spool("sft", "dead")
    tracker.log({"train/loss": 1.0}, 1, 1)
    tracker.end("FINISHED")
    assert tracker.spool is not None
    forward("http://127.0.0.1:9", tracker.spool)  # nobody listens there
    assert capsys.readouterr().err.count("warning: MLflow at http://127.0.0.1:9 does not answer") == 1
    events = [json.loads(line) for line in (tracker.spool / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["metrics", "end"]

    forward(store, tracker.spool)  # the next run, with a store that answers
    assert [run.data.metrics for run in runs(store, "dead")] == [{"train/loss": 1.0}]


def test_the_spool_of_a_killed_process_is_adopted_and_ended(store: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    tracker = spool("sft", "killed")
    tracker.log({"train/loss": 1.0}, 1, 9)
    assert tracker.spool is not None
    about = tracker.spool / "run.json"
    assert tracking.abandoned() == [], "the spool of a living process is left alone"
    about.write_text(json.dumps({**json.loads(about.read_text()), "pid": dead.pid}))
    adopted = tracking.abandoned()
    assert adopted == [tracker.spool.relative_to(Path.cwd())]
    assert tracking.abandoned() == [], "adopted once"
    forward(store, *adopted)
    assert [run.info.status for run in runs(store, "killed")] == ["KILLED"]


def test_several_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from posttrain.mlflow_sink import open_store\n"
        "client, experiment = open_store(sys.argv[1], 'posttrain/tiny')\n"
        "client.create_run(experiment)\n"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    several = [
        subprocess.Popen([sys.executable, "-c", program, uri], env=variables, stderr=subprocess.PIPE) for _ in range(3)
    ]
    errors = [process.communicate(timeout=300)[1] for process in several]
    assert [process.returncode for process in several] == [0] * 3, errors
    assert len(runs(uri, "posttrain/tiny")) == 3


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.new").write_text("half a database")
    open_store(f"sqlite:///{tmp_path}/mlflow.db", "posttrain/tiny")
    assert not (tmp_path / "mlflow.db.new").exists()


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    machine = tracking.System()
    assert tracking.store_uri(machine) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.store_uri(machine.model_copy(update={"tracking_uri": "http://a"})) == "http://a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert tracking.store_uri(machine) == "http://b"


def test_a_disk_that_takes_no_events_costs_a_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tracker = tracking.Tracker(tmp_path / "no-such-folder")
    tracker.log({"train/loss": 1.0}, 1, 1)
    tracker.log({"train/loss": 1.0}, 2, 1)
    assert capsys.readouterr().err.count("warning: tracking stops, the stage goes on") == 1
