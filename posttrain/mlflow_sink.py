"""Carries spooled events to MLflow; the one module that imports it.

A forwarder owns any number of spools (one per run), makes their runs, and removes a spool when its end has arrived.
Whatever the store answers, nothing is raised to the work being tracked: one warning, and the spool stays for later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A store that does not answer is noticed in seconds; MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from posttrain.tracking import EVENTS, RUN

STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
POLL_SECONDS = 1.0
RETRY_SECONDS = 20.0
BATCH = 1000
"""Metrics per call that MLflow accepts; 100 for params and tags."""


@dataclass
class _Spool:
    folder: Path
    run_id: str | None = None
    offset: int = 0
    """Bytes of the event file that the store has."""
    done: bool = False


class Forwarder:
    """Forwards spools to one store; `run` belongs in a thread."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._spools: list[_Spool] = []
        self._run_ids: dict[str, str] = {}
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._warned = False

    def run(self, closing: threading.Event, waiting: list[Path], lock: threading.Lock) -> None:
        """Until `closing` is set and everything has been forwarded, or cannot be. New spools come in `waiting`."""
        while True:
            last = closing.is_set()
            with lock:
                self._spools += [_Spool(folder) for folder in waiting]
                waiting.clear()
            wait = POLL_SECONDS
            try:
                for spool in list(self._spools):
                    self._forward(spool)
            except STORE_ERRORS as error:
                self._warn(error)
                wait = RETRY_SECONDS
            if last:
                return
            closing.wait(wait)

    def _warn(self, error: BaseException) -> None:
        if not self._warned:
            text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            print(
                f"warning: MLflow at {self.uri} does not answer; the work goes on, its metrics wait in "
                f"{self._spools[-1].folder.parent} for the next run: {text}",
                file=sys.stderr,
                flush=True,
            )
            self._warned = True

    def _forward(self, spool: _Spool) -> None:
        path = spool.folder / EVENTS
        if spool.done or not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(spool.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return
        events = [json.loads(line) for line in whole.splitlines()]
        if spool.run_id is None:
            self._create(spool, started=events[0]["time"])
        self._apply(spool, events)
        spool.offset += len(whole)
        if spool.done:
            shutil.rmtree(spool.folder, ignore_errors=True)
            self._spools.remove(spool)

    def _create(self, spool: _Spool, *, started: int) -> None:
        """`started`: milliseconds since the epoch; the run may be forwarded long after."""
        about = json.loads((spool.folder / RUN).read_text(encoding="utf-8"))
        run_id = about.get("run_id")
        if run_id is None:
            client, experiment = self._store(about["experiment"])
            tags = dict(about["tags"])
            if about["parent"]:
                parent = self._run_ids.get(about["parent"]) or _recorded_run_id(Path(about["parent"]))
                if parent:
                    tags["mlflow.parentRunId"] = parent
            run_id = client.create_run(experiment, started, tags, about["name"]).info.run_id
            (spool.folder / RUN).write_text(json.dumps({**about, "run_id": run_id}), encoding="utf-8")
        else:
            self._store(about["experiment"])
        spool.run_id = run_id
        self._run_ids[str(spool.folder)] = run_id

    def _store(self, experiment: str) -> tuple[MlflowClient, str]:
        if self._client is None or experiment not in self._experiments:
            self._client, self._experiments[experiment] = open_store(self.uri, experiment)
        return self._client, self._experiments[experiment]

    def _apply(self, spool: _Spool, events: list[dict[str, Any]]) -> None:
        client, run_id = self._client, spool.run_id
        assert client is not None and run_id is not None
        metrics = [
            Metric(name, value, event["time"], event["step"])
            for event in events
            if event["kind"] == "metrics"
            for name, value in event["metrics"].items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        for event in events:
            self._apply_other(client, run_id, event)
        ends = [event for event in events if event["kind"] == "end"]
        if ends:
            client.set_terminated(run_id, ends[-1]["status"], end_time=ends[-1]["time"])
            spool.done = True

    @staticmethod
    def _apply_other(client: MlflowClient, run_id: str, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "params":
            params = [Param(name, str(value)[:6000]) for name, value in event["params"].items()]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        elif kind == "tags":
            tags = [RunTag(name, str(value)) for name, value in event["tags"].items()]
            for start in range(0, len(tags), 100):
                client.log_batch(run_id, tags=tags[start : start + 100])
        elif kind == "artifact":
            if Path(event["path"]).is_file():
                client.log_artifact(run_id, event["path"], event["folder"])
        elif kind == "table":
            client.log_table(run_id, event["columns"], f"tables/{event['name']}.json")
        elif kind == "inputs":
            sets = [
                DatasetInput(Dataset(name, digest, "local", json.dumps({"uri": name})))
                for name, digest in event["inputs"].items()
            ]
            client.log_inputs(run_id, sets)
        elif kind == "cached":
            experiment = client.get_run(run_id).info.experiment_id
            made = client.search_runs(
                [experiment],
                f"tags.`dvc.stage_hash` = '{event['stage_hash']}' and tags.`dvc.cached` = 'false'",
                max_results=1,
            )
            if made:
                client.set_tag(run_id, "source_run_id", made[0].info.run_id)


def _recorded_run_id(folder: Path) -> str | None:
    path = folder / RUN
    return json.loads(path.read_text(encoding="utf-8")).get("run_id") if path.is_file() else None


def open_store(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """The client and the id of the experiment, both made if need be, by one process at a time.

    Several processes that make MLflow's sqlite file at once leave one that no later process can open.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _lock(Path(".work/mlflow.lock")):
        _make_database(uri)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        location = (Path("mlartifacts") / experiment.replace("/", "-")).absolute().as_uri()
        return client, client.create_experiment(experiment, location if uri.startswith("sqlite:") else None)


def _make_database(uri: str) -> None:
    """Make a sqlite file under another name: a process killed half-way would leave one that never opens again."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{fresh}")
    os.replace(fresh, path)


@contextlib.contextmanager
def _lock(path: Path, *, deadline_seconds: float = 120.0) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + deadline_seconds
    with path.open("a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"{path} is held for more than {deadline_seconds:g} s") from None
                time.sleep(0.1)
        yield
