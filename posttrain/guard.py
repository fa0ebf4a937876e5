"""A process that owns the process tree of a stage: when its parent dies, however it dies, the tree dies within seconds.

    python -m posttrain.guard -- dvc repro sft      (standard input: a pipe held open by the parent)

The parent holds the write end of the pipe. Its end, by exit, Ctrl-C, SIGTERM, kill -9 or the out-of-memory killer,
closes the pipe; the guard reads end of file and stops the command's whole group: SIGTERM first, so that the stage says
its last word, SIGKILL after a grace. Signalling DVC alone would orphan the training process; a parent-death signal
(PR_SET_PDEATHSIG) reaches only one generation. Standard library only: it must start at once and outlive everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def guarded(command: Sequence[str], *, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command under a guard; closing the result's stdin stops it. Output: one pipe, both streams."""
    return subprocess.Popen(
        [sys.executable, "-m", "posttrain.guard", "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )


@functools.cache
def end_with_dvc() -> None:
    """Where DVC runs this process, be asked to stop when it dies: killed alone, it would leave the stage running.

    DVC starts a stage by a shell, which may stay in between (dash, zsh) or be replaced by the stage (bash): so DVC is
    the nearest ancestor that was not itself started for this stage.
    """
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        own = {f"{name}={os.environ.get(name)}".encode() for name in ("DVC_STAGE", "DVC_ROOT")}
        dvc = os.getppid()
        while own <= set(_environment(dvc)):
            dvc = _parent(dvc)
        if dvc:
            threading.Thread(target=_end_with, args=(os.pidfd_open(dvc),), daemon=True).start()


def _environment(pid: int) -> list[bytes]:
    """Variables that a process was started with; none where it has ended or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    return next((parent for its, parent, _ in _processes() if its == pid), 0)


def _end_with(descriptor: int) -> None:
    """SIGTERM to this process when the one of a pidfd has ended."""
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def die_with_parent(number: int) -> None:
    """Get this signal when the parent dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def last_lines(process: subprocess.Popen[bytes], *, count: int = 20) -> deque[str]:
    """The end of a server's output, kept up to date by a thread: a pipe that nobody reads stops its writer."""
    lines: deque[str] = deque(maxlen=count)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip())

    threading.Thread(target=read, daemon=True).start()
    return lines


def stop(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe and wait until the tree is gone; at the very worst, kill the guard."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(GRACE_SECONDS + 5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def guard(command: Sequence[str]) -> int:
    """Run the command in its own session until it ends or standard input closes; returns its exit code, or 143."""
    _become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.close(0) if _is_open(0) else None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    code: int | None = None
    while code is None:
        with contextlib.suppress(OSError, ValueError):  # a signal closed our stdin: the same as its end
            if not select.select([0], [], [], 0.2)[0] or os.read(0, 1024):
                code = child.poll()
                continue
        break
    _stop_tree(child)  # after a normal end too: what the command left running has no owner any more
    return 143 if code is None else code


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _become_subreaper() -> None:
    """Orphans of the tree come to us, not to init, even those that started a session of their own (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _stop_tree(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group and to strays, SIGKILL to what is left after the grace."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        group = _pids_of_group(child.pid)
        for pid in _descendants(os.getpid()):
            if pid not in group:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            child.poll()
            _reap()
            if not _descendants(os.getpid()) and not _pids_of_group(child.pid):
                child.wait()
                return
            time.sleep(0.05)


def _reap() -> None:
    """Collect orphans that ended as our children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _processes() -> Iterator[tuple[int, int, int]]:
    """(pid, parent, group) of every living process, from /proc; nothing where there is none."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            yield int(path.parent.name), int(fields[1]), int(fields[2])


def _pids_of_group(group: int) -> set[int]:
    return {pid for pid, _, its in _processes() if its == group}


def _descendants(root: int) -> set[int]:
    children: dict[int, set[int]] = {}
    for pid, parent, _ in _processes():
        children.setdefault(parent, set()).add(pid)
    found: set[int] = set()
    front = [root]
    while front:
        new = children.get(front.pop(), set()) - found
        found |= new
        front += new
    return found


if __name__ == "__main__":
    sys.exit(guard(sys.argv[sys.argv.index("--") + 1 :]) % 256)
