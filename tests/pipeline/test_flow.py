"""The toy chain under a real flow with a real Prefect server: killed in the middle, then run to its end."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.pipeline.test_guard import wait_for
from tests.pipeline.toy import ROOT, environment, make_chain, run, running_in

FLOW = (sys.executable, "-m", "tests.pipeline.toy_flow")


def test_a_killed_flow_leaves_no_process_and_the_next_one_finishes(tmp_path: Path) -> None:
    chain, flow = flow_within(tmp_path, "b")
    assert any("stage.py b" in line for line in running_in(chain))
    flow.kill()
    flow.wait()
    assert wait_for(lambda: not running_in(chain), 10.0), running_in(chain)
    assert not (chain / "models/b").exists()

    (chain / "b.wait").unlink()
    (chain / "b.started").unlink()
    (chain / "evaluate@b.fail").touch()
    failed = run(chain, *FLOW, POSTTRAIN_TRACKING="on")
    assert failed.returncode == 1
    assert "( 1/3) a                up to date" in failed.stdout
    assert "( 2/3) b                ran" in failed.stdout
    assert "The chain stopped. evaluate@b: the sky is green, wanted blue" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr

    tracked = runs(chain)
    assert sorted(tracked["chain"]) == ["FAILED", "KILLED"]
    assert sorted(tracked["a"]) == ["FINISHED", "FINISHED"]
    assert sorted(tracked["b"]) == ["FINISHED", "KILLED"]
    assert tracked["evaluate@b"] == ["FAILED"]
    logged = [row[0] for row in rows(chain / ".prefect" / "prefect.db", "select message from log")]
    assert any("b: step 3/3" in line for line in logged), "the stage's own lines are in the run's log"
    names = rows(chain / ".prefect" / "prefect.db", "select name from task_run where state_type = 'COMPLETED'")
    assert ("b",) in names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 143, "Stopped by SIGTERM"), (signal.SIGINT, 130, "Interrupted")]
)
def test_a_stopped_flow_is_shown_as_ended(tmp_path: Path, number: signal.Signals, code: int, words: str) -> None:
    chain, flow = flow_within(tmp_path, "a")
    flow.send_signal(number)
    _, said = flow.communicate(timeout=120.0)
    assert flow.returncode == code
    assert words in said.decode()
    assert wait_for(lambda: not running_in(chain), 10.0), running_in(chain)
    assert runs(chain) == {"chain": ["KILLED"], "a": ["KILLED"]}
    states = rows(chain / ".prefect" / "prefect.db", "select state_type from flow_run")
    assert states == [("CRASHED",)]


def flow_within(folder: Path, stage: str) -> tuple[Path, subprocess.Popen[bytes]]:
    """A new toy chain, and a flow over it that waits inside a stage; its standard error is a pipe."""
    chain = make_chain(folder / "toy")
    shutil.copy(ROOT / "prefect.toml", chain)
    (chain / f"{stage}.wait").touch()
    flow = subprocess.Popen(
        FLOW,
        cwd=chain,
        env=environment(POSTTRAIN_TRACKING="on"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert wait_for((chain / f"{stage}.started").exists, 300.0)
    return chain, flow


def runs(chain: Path) -> dict[str, list[str]]:
    """Stage, or `chain` for parents -> the states of its runs in MLflow."""
    client = MlflowClient(f"sqlite:///{chain}/mlflow.db")
    experiment: Any = client.get_experiment_by_name("posttrain/tiny")
    states: dict[str, list[str]] = {}
    for found in client.search_runs([experiment.experiment_id]):
        states.setdefault(found.data.tags.get("stage", "chain"), []).append(found.info.status)
    return states


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return list(connection.execute(query))
    finally:
        connection.close()
