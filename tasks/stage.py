"""One DVC stage as one Prefect task and one MLflow run.

DVC alone decides whether a stage runs; here it is called, watched, guarded and recorded:
lock -> spool (MLflow child run) -> guard -> `dvc repro --single-item` -> ran | restored | skipped -> hashes, artifacts.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from posttrain import tracking
from posttrain.boundary import WORK
from posttrain.config import Params
from posttrain.errors import StageError, StageLockedError
from posttrain.guard import guarded, stop
from posttrain.job import file_stem, lock_holder, report_metrics, report_path
from posttrain.progress import Display
from posttrain.system import MARK, environment, load_system

Outcome = Literal["ran", "restored", "skipped"]

BUSY = "Unable to acquire lock"
"""DVC's words when another DVC holds the repository for longer than it waits; trying again helps."""
PROGRESS_SECONDS = 2.0
"""Lines that end in a carriage return (progress bars) are passed on at most this often."""


class TransientError(StageError):
    """A fault of the surroundings; the same command may succeed when called again."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the stages of one execution share."""

    params: Params
    experiment: str
    parent: Path | None
    """Spool of the execution's parent run; None when tracking is off."""
    display: Display
    forward: Any
    """Called with each new spool."""
    tags: dict[str, str]


def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Retry faults of the surroundings only: a stage that failed once fails again."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=is_transient,
)
def run_stage(stage: str, context: Context, *, force: bool = False) -> Outcome:
    """Bring one stage up to date; raises StageError with the stage's own message."""
    pid = lock_holder(stage)
    if pid is not None:
        raise StageLockedError(f"{stage}: already running: pid {pid}")
    tags = {"stage": stage, "profile": context.params.profile, **context.tags}
    tracker = (
        tracking.new_spool(file_stem(stage), experiment=context.experiment, tags=tags, parent=context.parent)
        if context.parent
        else tracking.Tracker(None)
    )
    if tracker.spool is not None:
        context.forward(tracker.spool)
    before = lock_entry(stage)
    status = "KILLED"
    outcome: Outcome | None = None
    context.display.begin(stage)
    try:
        code, lines = _repro(stage, context, tracker, force=force)
        if code != 0:
            status = "FAILED"
            raise failure(stage, code, lines)
        status = "FINISHED"
        outcome = classify(stage, lines, before, lock_entry(stage))
        _record(stage, outcome, tracker, context)
        get_run_logger().info("%s: %s", stage, outcome)
        return outcome
    finally:
        context.display.end(outcome or status.lower())
        tracker.end(status)


def _repro(stage: str, context: Context, tracker: tracking.Tracker, *, force: bool) -> tuple[int, list[str]]:
    """Run DVC under the guard; (exit code, its lines)."""
    logger = get_run_logger()
    command = [
        sys.executable,
        "-m",
        "dvc",
        "--wait-for-lock",
        "repro",
        "--single-item",
        *(["-f"] if force else []),
        stage,
    ]
    variables = {**os.environ, **environment(load_system()), MARK: "1", "PYTHONDONTWRITEBYTECODE": "1"}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    if tracker.spool is None:
        variables["POSTTRAIN_TRACKING"] = "off"
    else:
        variables["POSTTRAIN_SPOOL"] = str(tracker.spool)
    (WORK / "exit" / f"{stage}.json").unlink(missing_ok=True)
    log = WORK / "logs" / f"{file_stem(stage)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    process = guarded(command, environment=variables)
    try:
        assert process.stdout is not None
        with log.open("w", encoding="utf-8") as file:
            for line in output_lines(process.stdout):
                file.write(line + "\n")
                lines.append(line)
                logger.info("%s", line)
                context.display.line(line)
        return process.wait(), lines
    finally:
        stop(process)  # whatever ended the loop, cancellation included: nothing of the stage outlives the task


def output_lines(stream: Any) -> Iterator[str]:
    """Text lines of a byte stream; of a progress bar, which rewrites its line, one state now and then."""
    pending = b""
    last = 0.0
    while chunk := stream.read1(65536):
        pending += chunk
        while (cut := min((i for i in (pending.find(b"\n"), pending.find(b"\r")) if i >= 0), default=-1)) >= 0:
            line, end, pending = pending[:cut], pending[cut : cut + 1], pending[cut + 1 :]
            if end == b"\r":
                if time.monotonic() - last < PROGRESS_SECONDS:
                    continue
                last = time.monotonic()
            if text := line.decode(errors="replace").rstrip():
                yield text[:2000]
    if text := pending.decode(errors="replace").rstrip():
        yield text[:2000]


def lock_entry(stage: str, lock: Path = Path("dvc.lock")) -> dict[str, Any]:
    """The stage's record in dvc.lock; empty before its first run."""
    if not lock.is_file():
        return {}
    entry: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages", {}).get(stage, {})
    return entry


def classify(stage: str, lines: list[str], before: dict[str, Any], after: dict[str, Any]) -> Outcome:
    """What DVC did, in its own words; its exit code does not tell."""
    text = "\n".join(lines)
    if f"Running stage '{stage}'" in text:
        return "ran"
    if f"Stage '{stage}' is cached" in text:
        return "restored"
    if f"Stage '{stage}' didn't change" in text:
        return "skipped"
    return "skipped" if before == after else "ran"


def failure(stage: str, code: int, lines: list[str]) -> StageError:
    """The stage's own message where it left one, else DVC's last lines."""
    path = WORK / "exit" / f"{stage}.json"
    if path.is_file():
        return StageError(f"{stage}: {json.loads(path.read_text(encoding='utf-8'))['message']}")
    text = "\n".join(lines[-8:]) or f"exit code {code}"
    if any(BUSY in line for line in lines):
        return TransientError(f"{stage}: {text}")
    return StageError(f"{stage}: {text}")


def _record(stage: str, outcome: Outcome, tracker: tracking.Tracker, context: Context) -> None:
    """Hashes, inputs and artifacts; for a stage that did not run also its metrics, so that no page has a hole."""
    entry = lock_entry(stage)
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
    tracker.tags({"dvc.outcome": outcome, "dvc.cached": str(outcome != "ran").lower(), "dvc.stage_hash": digest})
    tracker.tags(tracking.dvc_tags(stage))
    tracker.inputs(
        {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if dep["path"].startswith(("data/", "models/"))}
    )
    report = report_path(stage)
    if outcome != "ran":
        tracker.params(tracking.stage_params(stage, context.params.model_dump(mode="json")))
        tracker.cached(digest)
        for out in entry.get("outs", []):
            path = Path(out["path"])
            if path.parts[0] == "reports" and path.is_file():
                tracker.artifact(path, {".csv": "curves", ".svg": "figures"}.get(path.suffix, "reports"))
        if report.is_file():
            tracker.log(report_metrics(stage, json.loads(report.read_text(encoding="utf-8"))), 0, None)
    tracker.artifact(WORK / "logs" / f"{file_stem(stage)}.log", "logs")
