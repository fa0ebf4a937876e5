"""Worker processes that answer questions and can be killed: a hard deadline, a memory limit, a restart.

A question is a JSON object, and so is its answer; one line each. A worker is handed some questions at once and answers
one after the other. It sets an alarm whose default action ends it, so that it dies on time even when its parent is
gone; the parent kills its whole process group a moment later, whatever state it is in, and starts another. A question
whose worker died for another reason than its deadline is asked once more, of a new worker; every question gets one
reply or None. The questions behind it, which had not begun, are handed out again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.engine import sandbox_inner
from posttrain.errors import StageError

Question = Mapping[str, Any]
Reply = dict[str, Any]

START_S = 120.0
"""Until a worker has imported what it needs."""
GRACE_S = 1.0
"""Between the worker's own alarm and its parent's kill."""
QUESTIONS_PER_WORKER = 8
"""A further worker is started when at least so many questions wait for each: a start costs a second or two."""
AT_ONCE = 32
"""Questions handed to a worker together, at most: two switches between processes are dearer than a short question."""
AT_ONCE_BYTES = 1 << 15
"""And how long they may be together: a pipe holds them, so that handing them over waits for nobody."""
TRIES = 2
REPLY_BYTES = select.PIPE_BUF
"""Longest reply: all replies to AT_ONCE questions fit into a buffer, and each is written in one piece."""


class WorkerError(StageError):
    """A worker that cannot be started: names the command and what it said."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    until: float
    """When the answer awaited is late (time.monotonic)."""
    tasks: deque[int] = field(default_factory=deque)
    """Places of the questions that it has not answered; it is at the first one."""
    ready: bool = False
    heard: bytes = b""
    """Of a line that has not ended."""

    @property
    def awaited(self) -> bool:
        return bool(self.tasks) or not self.ready

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, line: bytes, until: float) -> None:
        """Raises BrokenPipeError when the worker takes no more."""
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        writable = select.poll()  # select(2) knows no descriptor above 1023
        writable.register(descriptor, select.POLLOUT)
        rest = memoryview(line)
        while rest:
            if not writable.poll(1000.0 * max(0.0, until - time.monotonic())):
                raise BrokenPipeError
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]

    def kill(self, *, patience_s: float = 0.0) -> int:
        """End it and all it started; its exit code (negative: a signal), its own where it ends within the patience."""
        end = time.monotonic() + patience_s
        # Not reaped yet, so that the number of its group cannot be another's.
        while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= end:
                break
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code


@dataclass(slots=True)
class WorkerPool:
    """Up to `workers` processes of one command, started when they are needed; usable from any thread."""

    command: Sequence[str]
    """What a worker runs: a program that ends in `serve`."""
    deadline_s: float
    """Wall-clock time of one question."""
    workers: int
    restarts: int = 0
    _running: list[_Worker] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, questions: Sequence[Question]) -> list[Reply | None]:
        """The replies in the order of the questions; None: the deadline passed, or the worker died twice on it.

        Raises WorkerError when a worker cannot be started.
        """
        with self._lock:
            return _Round(self, questions).run()

    def close(self) -> None:
        """End all workers; the next question starts new ones."""
        with self._lock:
            while self._running:
                self._running.pop().kill()

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            list(self.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        worker = _Worker(process, time.monotonic() + START_S)
        self._running.append(worker)
        return worker


class _Round:
    """The questions of one call on their way through the workers."""

    def __init__(self, pool: WorkerPool, questions: Sequence[Question]) -> None:
        self._pool = pool
        self._lines = [json.dumps(question).encode() + b"\n" for question in questions]
        self._replies: list[Reply | None] = [None] * len(questions)
        self._deaths = [0] * len(questions)
        self._waiting = deque(range(len(questions)))
        self._left = len(questions)

    def run(self) -> list[Reply | None]:
        pool = self._pool
        try:
            while self._left:
                wanted = min(pool.workers, 1 + len(self._waiting) // QUESTIONS_PER_WORKER)
                while len(pool._running) < wanted:
                    pool._start()
                for worker in list(pool._running):
                    if self._waiting and not worker.awaited:
                        self._give(worker)
                self._listen()
        except BaseException:
            # An answer under way would be taken for that of the next call's first question.
            while pool._running:
                pool._running.pop().kill()
            raise
        return self._replies

    def _give(self, worker: _Worker) -> None:
        """As many as leave the same again for every worker, so that all end at about the same time."""
        most = max(1, min(AT_ONCE, len(self._waiting) // (2 * self._pool.workers)))
        text = b""
        while self._waiting and len(worker.tasks) < most:
            line = self._lines[self._waiting[0]]
            if text and len(text) + len(line) > AT_ONCE_BYTES:
                break
            worker.tasks.append(self._waiting.popleft())
            text += line
        worker.until = self._deadline()
        try:
            worker.send(text, worker.until)
        except BrokenPipeError:
            self._lost(worker, late=False)

    def _deadline(self) -> float:
        return time.monotonic() + self._pool.deadline_s + GRACE_S

    def _listen(self) -> None:
        """Take what has come until the next worker is late."""
        awaited = [worker for worker in self._pool._running if worker.awaited]
        if not awaited:
            return
        soonest = min(worker.until for worker in awaited)
        descriptors = [worker.fileno() for worker in awaited]
        talking = multiprocessing.connection.wait(descriptors, max(0.0, soonest - time.monotonic()))
        for worker, descriptor in zip(awaited, descriptors, strict=True):
            if descriptor in talking:
                self._take(worker)
            elif time.monotonic() >= worker.until:
                self._lost(worker, late=True)

    def _take(self, worker: _Worker) -> None:
        block = os.read(worker.fileno(), 1 << 16)
        if not block:
            self._lost(worker, late=False)
            return
        *lines, worker.heard = (worker.heard + block).split(b"\n")
        for line in lines:
            worker.until = self._deadline()
            if not worker.ready:
                worker.ready = True
                continue
            self._replies[worker.tasks.popleft()] = json.loads(line)
            self._left -= 1

    def _lost(self, worker: _Worker, *, late: bool) -> None:
        """The worker is dead, or will be: its question is asked again or given up, those behind it wait again."""
        self._pool._running.remove(worker)
        code = worker.kill(patience_s=0.0 if late else GRACE_S)
        if not worker.ready:
            said = "said nothing within its time" if late else f"ended with exit code {code}; its output is above"
            raise WorkerError(f"worker `{' '.join(self._pool.command)}`: {said}; wanted: a worker that starts")
        self._pool.restarts += 1
        if worker.tasks:
            self._deaths[worker.tasks[0]] += 1
            if late or code == -signal.SIGALRM or self._deaths[worker.tasks[0]] >= TRIES:
                worker.tasks.popleft()
                self._left -= 1
        self._waiting.extendleft(reversed(worker.tasks))


def serve(answer: Callable[[Reply], Reply], *, deadline_s: float, memory_bytes: int, locked: bool) -> None:
    """Be a worker: answer questions from standard input until it ends.

    An exception of `answer` becomes the reply {"error": text}. `locked`: from here on this process starts no other and
    no thread, opens no socket and changes no file, where sandbox_inner knows the machine's system calls.
    """
    channel = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # what a verifier prints is no reply
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if locked and sandbox_inner.machine_is_known():
        sandbox_inner.forbid(writing=True)
    os.write(channel, b"{}\n")
    for line in sys.stdin.buffer:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            reply = answer(question)
        except (Exception, SystemExit) as error:  # the boundary: whatever went wrong is no answer
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        text = json.dumps(reply).encode()
        if len(text) >= REPLY_BYTES:
            text = json.dumps({"error": f"a reply of {len(text)} bytes; wanted: fewer than {REPLY_BYTES}"}).encode()
        os.write(channel, text + b"\n")
