"""What a verifier may do wrong, and what must hold: a reply or None in bounded time, and nothing outside touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.engine.workers import GRACE_S, WorkerError, WorkerPool
from posttrain.guard import _descendants

DEADLINE_S = 1.0
MEMORY = 256 << 20


def make_pool(workers: int = 1, deadline_s: float = DEADLINE_S) -> WorkerPool:
    command = [sys.executable, "-m", "tests.engine.misbehaving", str(deadline_s), str(MEMORY)]
    return WorkerPool(command, deadline_s=deadline_s, workers=workers)


@pytest.fixture(scope="module")
def shared() -> Iterator[WorkerPool]:
    """One worker, warm, that survives every test of this module."""
    pool = make_pool()
    assert pool.ask([{"do": "echo", "value": 1}]) == [{"value": 1}]
    yield pool
    pool.close()


def echo(value: object) -> dict[str, object]:
    return {"do": "echo", "value": value}


def test_replies_come_in_the_order_of_the_questions(shared: WorkerPool) -> None:
    values = [*range(50), "\u00e9\n\ud800", ["nested", {"a": None}]]
    longer_than_a_pipe = {"do": "nothing", "padding": "long" * 50_000}
    replies = shared.ask([*map(echo, values), longer_than_a_pipe])
    assert replies == [*({"value": value} for value in values), {"value": "done"}]
    assert shared.ask([]) == []


@pytest.mark.parametrize(
    "fault", ["sleep", "sleep without alarm", "hang in C", "print"], ids=lambda fault: str(fault).replace(" ", "_")
)
def test_what_takes_too_long_is_given_up_once_and_on_time(shared: WorkerPool, fault: str) -> None:
    before = shared.restarts
    start = time.monotonic()
    assert shared.ask([{"do": fault}, echo(2)]) == [None, {"value": 2}]
    assert time.monotonic() - start < DEADLINE_S + GRACE_S + 3.0  # the new worker's start included
    assert shared.restarts == before + 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("eat memory", "MemoryError"),
        ("fork", "PermissionError"),
        ("thread", "RuntimeError"),
        ("run", "PermissionError"),
        ("exit", "SystemExit"),
        ("write", "PermissionError"),
        ("empty", "PermissionError"),
        ("delete", "PermissionError"),
        ("connect", "PermissionError"),
        ("ramble", "a reply of"),
    ],
)
def test_what_is_forbidden_is_an_error_and_changes_nothing(
    shared: WorkerPool, tmp_path: Path, fault: str, error: str
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        question = {"do": fault, "path": str(kept), "port": server.getsockname()[1]}
        broken, good = shared.ask([question, echo(2)])
        with pytest.raises(BlockingIOError):
            server.accept()
    assert broken is not None
    assert str(broken["error"]).startswith(error)
    assert good == {"value": 2}
    assert kept.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [kept]


def test_a_question_whose_worker_dies_is_asked_twice_and_no_other(tmp_path: Path) -> None:
    """Question 3 kills its worker whenever it is asked; each of the others is asked once, whoever answers it."""
    reading, writing = os.pipe()
    pool = make_pool(workers=2, deadline_s=5.0)
    original = subprocess.Popen

    def keeping(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        return original(*args, **kwargs, pass_fds=(writing,))  # type: ignore[call-overload, no-any-return]

    questions = [{"do": "log", "to": writing, "value": n, "die": n == 3} for n in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", keeping)
        replies = pool.ask(questions)
    pool.close()
    os.close(writing)
    with os.fdopen(reading) as log:
        asked = Counter(int(line) for line in log)
    assert replies == [None if n == 3 else {"value": n} for n in range(40)]
    assert asked == {n: 2 if n == 3 else 1 for n in range(40)}
    assert pool.restarts == 2


def test_long_questions_pass_a_pipe_that_does_not_hold_them(shared: WorkerPool) -> None:
    """Together 3 MB, each half a pipe or more: in the order asked, and with a fault between them."""
    questions = [{"do": "echo", "value": n, "padding": "x" * (1 << 15)} for n in range(90)]
    questions[40] = {"do": "exit", "padding": "x" * 200_000}
    replies = shared.ask(questions)
    assert [reply and reply.get("value") for reply in replies] == [*range(40), None, *range(41, 90)]


def test_a_worker_that_exits_at_once_is_given_a_second_chance_and_no_third() -> None:
    pool = make_pool()
    assert pool.ask([{"do": "exit at once"}, echo(2)]) == [None, {"value": 2}]
    assert pool.restarts == 2
    pool.close()


def test_a_worker_killed_while_idle_costs_no_question() -> None:
    pool = make_pool()
    assert pool.ask([echo(1)]) == [{"value": 1}]
    pool._running[0].process.kill()
    time.sleep(0.1)
    assert pool.ask([echo(2), echo(3)]) == [{"value": 2}, {"value": 3}]
    assert pool.restarts == 1
    pool.close()


def test_a_worker_that_does_not_start_is_named() -> None:
    pool = WorkerPool([sys.executable, "-c", "raise SystemExit(3)"], deadline_s=1.0, workers=1)
    with pytest.raises(WorkerError, match=r"raise SystemExit.*ended with exit code 3"):
        pool.ask([echo(1)])


def test_no_worker_is_left_by_close_or_by_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _descendants(os.getpid())
    pool = make_pool(deadline_s=60.0)
    pool.ask([echo(1)])
    assert _descendants(os.getpid()) - before
    pool.close()
    assert _descendants(os.getpid()) - before == set()

    pool.ask([echo(1)])
    monkeypatch.setattr("posttrain.engine.workers.multiprocessing.connection.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.ask([{"do": "sleep"}])
    assert _descendants(os.getpid()) - before == set()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_worker_dies_with_its_parent_even_in_the_middle_of_a_question() -> None:
    program = (
        "import sys; from tests.engine.test_workers import *\n"
        "pool = make_pool(deadline_s=1.0); pool.ask([echo(1)])\n"
        "print(pool._running[0].process.pid, flush=True); pool.ask([{'do': 'sleep'}])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    end = time.monotonic() + 5.0
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < end:
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    assert time.monotonic() < end
