"""One execution of the chain: its MLflow parent run, its forwarder, its display and a Prefect server of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.gates import GateFailed, check_gates
from posttrain import tracking
from posttrain.config import ConfigError, load_params
from posttrain.errors import StageError, Terminated, sigterm_raises
from posttrain.guard import guarded, last_lines
from posttrain.job import report_metrics, report_path
from posttrain.machine import free_port
from posttrain.progress import Display, model_table
from posttrain.system import load_system
from tasks.stage import Context, Outcome, run_stage

SERVER_START_SECONDS = 180.0
"""The first start makes the server's database."""


@dataclass
class Execution:
    context: Context
    parent: tracking.Tracker
    stages: Sequence[str]
    force: frozenset[str]
    stop_after: str | None
    stopped: bool = False

    def stage(self, name: str) -> Outcome | None:
        """Run one stage and its gates; after `stop_after` nothing runs any more."""
        if self.stopped:
            return None
        outcome = run_stage(name, self.context, force=name in self.force)
        self.stopped = name == self.stop_after
        path = report_path(name)
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
            if name.startswith("evaluate@"):
                # On the parent, the step is the stage's place in the chain: one chart shows the whole chain.
                self.parent.log(report_metrics(name, report), self.stages.index(name), None)
            check_gates(name, report, self.context.params.gates)
        return outcome


@contextlib.contextmanager
def open_execution(
    stages: Sequence[str], *, force: Sequence[str] = (), stop_after: str | None = None, tags: dict[str, str]
) -> Iterator[Execution]:
    """Everything that the stages of one execution share, closed in order whatever happens."""
    params = load_params()
    experiment = f"posttrain/{params.profile}"
    name = f"chain-{params.profile}-{time.strftime('%Y%m%d-%H%M%S')}"
    common = {**tracking.git_tags(), **tags, "execution": name}
    status = "FAILED"
    with contextlib.ExitStack() as stack:
        parent = tracking.Tracker(None)
        forward: Callable[[Path], None] = _ignore
        if os.environ.get("POSTTRAIN_TRACKING") != "off":
            parent = tracking.new_spool(name, experiment=experiment, tags={"kind": "chain", **common})
            forward = stack.enter_context(_forwarder())
            if parent.spool is not None:
                forward(parent.spool)
        parent.params({"profile": params.profile, "seed": params.seed})
        display = stack.enter_context(Display(stages))
        context = Context(params, experiment, parent.spool, display, forward, common)
        try:
            yield Execution(context, parent, stages, frozenset(force), stop_after)
            status = "FINISHED"
        except (KeyboardInterrupt, TerminationSignal):  # Ctrl-C; SIGTERM, which Prefect catches inside a flow
            status = "KILLED"
            raise
        finally:
            for path in (Path("params.yaml"), Path("dvc.lock")):
                parent.artifact(path, "chain")
            parent.end(status)


def _ignore(folder: Path) -> None:
    """Where spools go when tracking is off."""


@contextlib.contextmanager
def _forwarder() -> Iterator[Callable[[Path], None]]:
    """A thread that forwards spools to MLflow; it imports MLflow while the first stage works already."""
    closing = threading.Event()
    waiting: list[Path] = tracking.abandoned()
    added = threading.Lock()

    def work() -> None:
        from posttrain.mlflow_sink import Forwarder

        Forwarder(tracking.store_uri(load_system())).run(closing, waiting, added)

    def forward(folder: Path) -> None:
        with added:
            waiting.append(folder)

    thread = threading.Thread(target=work, name="forwarder", daemon=True)
    thread.start()
    try:
        yield forward
    finally:
        closing.set()
        thread.join(tracking.FLUSH_SECONDS)


def prepare() -> None:
    """Before a flow of ours starts: bad parameters end it here, and its console belongs to the display.

    Prefect's log in the database has every line; on the console they would tear the display.
    """
    load_params()
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # where Prefect sets its logging up again
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)


def run_program(flow: Callable[[], None], *, stopped: str, interrupted: str) -> int:
    """Run a flow on a server of its own; the exit code, after one message for a person where it did not end well.

    SIGTERM unwinds the flow as Ctrl-C does: at Python's default it would end the process at once, and the server would
    show the run as running for ever.
    """
    try:
        with sigterm_raises():
            prepare()
            with temporary_settings({PREFECT_API_URL: prefect_server()}):
                flow()
    except (StageError, ConfigError, GateFailed) as error:
        print(f"\n{stopped} {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except Terminated:
        print(f"\nStopped by SIGTERM; {interrupted}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"\nInterrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


_SERVERS: list[subprocess.Popen[bytes]] = []
"""Kept, so that the pipes to their guards stay open as long as this process lives."""


def prefect_server() -> str:
    """The address of a server: the one that PREFECT_API_URL names, else one of our own.

    Ours ends when this process has ended, however it ends: its guard sees to that (Prefect's own temporary server
    survives a `kill -9` of the flow). Nothing stops it earlier, since Prefect sends its last logs at interpreter exit.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given:
        return given
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    variables = {**os.environ, "PREFECT_UI_API_URL": api, "PREFECT_LOGGING_SERVER_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = guarded(command, environment=variables)
    _SERVERS.append(server)
    _wait_until_up(f"{api}/health", lambda: server.poll() is None, last_lines(server))
    return api


def _wait_until_up(url: str, alive: Callable[[], bool], output: Iterable[str]) -> None:
    end = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < end and alive():
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    raise RuntimeError("Prefect's server did not start:\n" + "\n".join(output))


def closing_words(display: Display, models: Sequence[str]) -> None:
    """The table of all models and where to look further."""
    console = display.console
    console.print()
    console.print(model_table(order=models))
    console.print(f"\nreport page   {Path('reports/index.html').absolute().as_uri()}")
    console.print("Prefect UI    http://127.0.0.1:4200   (both UIs: make ui)")
    console.print("MLflow UI     http://127.0.0.1:5000")
