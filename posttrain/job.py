"""One run of one stage: what every tasks/<stage>.py opens before it works.

    with open_job("sft") as job:
        ...
        with job.publish(Path("models/sft")) as folder:
            save(folder)
        job.report({...})

The same code runs under `python -m tasks.sft`, under `dvc repro` and under the flow, which differ only in environment
variables. A job owns what must hold in all three: the stage lock, seeds, whole-or-nothing outs, the curve that survives
a restart, and one clear message when the stage cannot go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import system, tracking
from posttrain.boundary import WORK, RankEnded, boundary, explain
from posttrain.config import Params, load_params
from posttrain.errors import StageLockedError, sigterm_raises
from posttrain.files import append_row, curve_csv, flatten, fsync_tree, journal_rows, remove, rounded, write_atomic
from posttrain.fingerprint import fingerprint
from posttrain.guard import end_with_dvc
from posttrain.hosts import read_hostfile
from posttrain.progress import progress_line
from posttrain.ranks import RankError, Ranks, is_launched, launched_rank, leave_launched, start_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOLATILE = ("time/", "perf/")
"""Metrics that differ from run to run; they never reach reports/."""
LINE_SECONDS = 3.0
"""Time between two lines of progress."""


class Job:
    """The open run of a stage; made by open_job."""

    def __init__(self, stage: str, params: Params, machine: system.System, tracker: tracking.Tracker) -> None:
        self.stage = stage
        self.params = params
        self.system = machine
        self.seed = stage_seed(params.seed, stage)
        self._tracker = tracker
        self._checkpoints: Path | None = None
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0

    @property
    def checkpoints(self) -> Path:
        """`.work/ckpt/<stage>/<fingerprint>/`: the same params, inputs and code find it again, any change does not."""
        if self._checkpoints is None:
            parent = WORK / "ckpt" / self.stage
            self._checkpoints = parent / fingerprint(self.stage)
            others = [other for other in parent.glob("*") if other != self._checkpoints]
            if any(any(other.iterdir()) for other in others):
                self.note("params, inputs or code changed after a run that did not end: starts from the beginning")
            for other in others:
                shutil.rmtree(other, ignore_errors=True)
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        return self._checkpoints

    def log(self, metrics: Mapping[str, float], step: int, total: int | None = None) -> None:
        """One call per step: tracking, the curve (but for time/ and perf/) and a line of progress now and then."""
        values = {name: float(value) for name, value in metrics.items()}
        steady = {name: value for name, value in values.items() if not name.startswith(VOLATILE)}
        curve = {name: rounded(value) for name, value in steady.items() if math.isfinite(value)}
        if curve:
            append_row(self.checkpoints / "curve.jsonl", {"step": step, **curve})
        self._tracker.log(values, step, total)
        self._progress(values, step, total)

    def note(self, text: str) -> None:
        """One line for the person watching."""
        print(f"{self.stage}: {text}", flush=True)
        self._tracker.note(text)

    @contextlib.contextmanager
    def publish(self, out: Path) -> Iterator[Path]:
        """A fresh folder that becomes `out` in one rename; on an exception `out` stays as it was."""
        with self.publish_file(out) as fresh:
            fresh.mkdir()
            yield fresh

    @contextlib.contextmanager
    def publish_file(self, out: Path) -> Iterator[Path]:
        """A path to write to that becomes `out` in one rename; on an exception `out` stays as it was."""
        fresh = self._scratch / f"new-{out.name}"
        remove(fresh)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield fresh
            fsync_tree(fresh)
            self._swap(fresh, out)
        finally:
            remove(fresh)

    def report(self, values: Mapping[str, Any]) -> None:
        """reports/<stage>.json, whole or not at all: sorted keys, 6 significant digits, no NaN."""
        tidy = rounded(dict(values))
        path = report_path(self.stage)
        write_atomic(path, json.dumps(tidy, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        self._tracker.log(report_metrics(self.stage, tidy), 0, None)
        self._tracker.artifact(path, "reports")

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Parameters in MLflow besides the stage's own section: what a study made of several files."""
        self._tracker.params(tracking.flat_params(values))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of samples in MLflow; the same name in each stage lets its page compare them."""
        self._tracker.table(name, [dict(row) for row in rows])

    def figure(self, name: str, figure: Figure) -> None:
        """reports/figures/<stage>-<name>.svg; equal figures give equal bytes."""
        self._draw(Path("reports/figures"), name, figure)

    def picture(self, name: str, figure: Figure) -> None:
        """A figure for MLflow alone: one that not every run of the stage has cannot be an out of DVC."""
        self._draw(WORK / "figures", name, figure)

    def _draw(self, folder: Path, name: str, figure: Figure) -> None:
        import matplotlib  # here, because most stages draw nothing and it takes long to import

        path = folder / f"{file_stem(self.stage)}-{name}.svg"
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".svg.partial")
        try:
            with matplotlib.rc_context({"svg.hashsalt": "posttrain"}):
                figure.savefig(partial, format="svg", metadata={"Date": None})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self._tracker.artifact(path, "figures")

    @property
    def _scratch(self) -> Path:
        return WORK / "tmp" / self.stage

    def _swap(self, fresh: Path, out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.is_dir():
            os.replace(fresh, out)
            return
        # A folder that is not empty cannot be replaced in one call, so the old one steps aside first.
        aside = self._scratch / f"old-{out.name}"
        remove(aside)
        os.replace(out, aside)
        os.replace(fresh, out)
        remove(aside)

    def _progress(self, values: Mapping[str, float], step: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        if now - self._last_line < LINE_SECONDS and step != total:
            return
        self._last_line = now
        print(f"{self.stage}: {progress_line(values, step, total, self._first, now)}", flush=True)

    def _finish(self) -> None:
        """Curve to reports/, checkpoints away: the stage is done."""
        if self._checkpoints is None:
            return
        rows = journal_rows(self._checkpoints / "curve.jsonl")
        if rows:
            path = curve_path(self.stage)
            write_atomic(path, curve_csv(rows))
            self._tracker.artifact(path, "curves")
        shutil.rmtree(self._checkpoints)


class Follower(Job):
    """The job of the ranks above 0: it takes everything and keeps nothing, as the first rank has the same."""

    @property
    def checkpoints(self) -> Path:
        if self._checkpoints is None:
            self._checkpoints = WORK / "ckpt" / self.stage / fingerprint(self.stage)
        return self._checkpoints

    def log(self, metrics: Mapping[str, float], step: int, total: int | None = None) -> None: ...

    def note(self, text: str) -> None: ...

    def report(self, values: Mapping[str, Any]) -> None: ...

    def _draw(self, folder: Path, name: str, figure: Figure) -> None: ...

    @property
    def _scratch(self) -> Path:
        return WORK / "tmp" / self.stage / os.environ["RANK"]

    def _swap(self, fresh: Path, out: Path) -> None: ...

    def _finish(self) -> None: ...


def file_stem(stage: str) -> str:
    """`evaluate@sft` -> `evaluate-sft`; `studies/objectives@grpo` -> `studies-objectives-grpo`."""
    return stage.replace("@", "-").replace("/", "-")


def report_path(stage: str) -> Path:
    """`sft` -> reports/sft.json; `evaluate@sft` -> reports/evaluate/sft.json; a study's are below reports/studies."""
    return Path("reports") / f"{stage.replace('@', '/')}.json"


def curve_path(stage: str) -> Path:
    """reports/curves/sft.csv; a study's lie beside its reports, since stage `report` reads all of reports/curves."""
    if "/" in stage:
        return report_path(stage).with_suffix(".csv")
    return Path("reports/curves") / f"{file_stem(stage)}.csv"


def report_metrics(stage: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report as MLflow metrics: `eval/...` for evaluations, `report/...` for the other stages."""
    prefix = "eval" if stage.startswith("evaluate@") else "report"
    return {f"{prefix}/{name}": value for name, value in flatten(values).items()}


def stage_seed(seed: int, stage: str) -> int:
    """params.seed mixed with the stage's name; the items of one stage (evaluate@sft, evaluate@grpo) share theirs."""
    digest = hashlib.sha256(f"{seed}:{stage.split('@')[0]}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@contextlib.contextmanager
def open_job(stage: str, *, parallel: bool = False) -> Iterator[Job]:
    """Environment, parameters, lock, tracker and seeds; then the stage; then its curve, or one clear message.

    `parallel`: the stage's work is shared by the processes that system.yaml says; all of them run what is inside. What
    a rank above 0 runs ends here, with SystemExit.
    """
    tracker: tracking.Tracker | None = None
    status = "FAILED"
    try:
        with boundary(stage, WORK / "exit" / f"{stage}.json"), contextlib.ExitStack() as stack:
            end_with_dvc()
            machine = system.load_system()
            system.apply_environment(machine)
            params = load_params()
            stack.enter_context(sigterm_raises())
            if launched_rank() == 0:
                _take_lock(stage, stack)
                shutil.rmtree(WORK / "tmp" / stage, ignore_errors=True)
            ranks = _start(stage, machine) if parallel else _alone(stage)
            if ranks.rank:
                yield from _follow(Follower(stage, params, machine, tracking.Tracker(None)), ranks)
            stack.enter_context(_with_others(ranks))
            tracker = tracking.start(stage, params, machine)
            job = Job(stage, params, machine, tracker)
            _seed(job.seed)
            yield job
            ranks.wait()
            job._finish()
            status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except SystemExit as stop:
        if stop.code in (130, 143):
            status = "KILLED"
        raise
    finally:
        if tracker is not None:
            tracker.end(status)


def _start(stage: str, machine: system.System) -> Ranks:
    hosts = [] if machine.hostfile is None or is_launched() else read_hostfile(Path(machine.hostfile))
    ranks = start_ranks(system.processes_of(machine), WORK / "ranks" / stage, hosts)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > 1 and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(system.threads_per_process(machine, here))
    return ranks


def _alone(stage: str) -> Ranks:
    """A stage whose work is not shared; a launcher's further ranks end here."""
    if is_launched() and not leave_launched():
        raise RankEnded(0)
    return Ranks(0, WORK / "ranks" / stage)


def _follow(job: Follower, ranks: Ranks) -> Iterator[Job]:
    """A rank above 0, to its end."""
    _seed(job.seed)
    try:
        yield job
    except BaseException as error:
        code, _, message = explain(error)
        ranks.fail(code, message)
        if code is None:
            traceback.print_exc()
        else:  # beside the first rank's own, where a launcher has started this one
            print(f"{job.stage}: rank {ranks.rank}: {message}", file=sys.stderr, flush=True)
        raise RankEnded(code or 1) from None
    raise RankEnded(0)


@contextlib.contextmanager
def _with_others(ranks: Ranks) -> Iterator[None]:
    """Ends the other ranks when this one fails, and finds out whose failure it was.

    A rank that is gone breaks the exchange that the others are in, so the first to fail had the reason.
    """
    try:
        ranks.watch()
        yield
    except BaseException as error:
        when, known = time.time(), explain(error)
        for failure in [] if isinstance(error, KeyboardInterrupt) else ranks.failures():
            if known[0] is None and failure.when < when:
                raise ranks.error(failure.rank, failure.message) from error
            if known[0] == 1 and failure.code == 1 and failure.message != known[2]:
                raise RankError(f"{known[2]}\nrank {failure.rank}: {failure.message}") from error
        raise
    finally:
        ranks.kill()


def _take_lock(stage: str, stack: contextlib.ExitStack) -> None:
    path = WORK / "locks" / f"{stage}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(path.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise StageLockedError(f"already running: pid {lock.read().strip() or 'unknown'}") from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()


def lock_holder(stage: str) -> str | None:
    """The pid of the process that runs the stage now, if one does."""
    path = WORK / "locks" / f"{stage}.lock"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().strip() or "unknown"
    return None


def _seed(seed: int) -> None:
    """Python always, numpy and torch where the stage has imported them."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
