"""Programs of a model, run where they can do no harm: the only place that executes what a model wrote.

Walls: no network, no file but its own small folder in memory, nothing readable but the interpreter and the system's
libraries, one process with one thread, and limits on CPU time, wall-clock time, memory, files and output. They are
built by bubblewrap where it is installed, otherwise by the kernel's unprivileged namespaces; where neither works
nothing runs: SandboxError says why. A program passes when it comes to its end: it raises nothing and does not exit
before.

What is the program's own doing (an exception, an exit, too much CPU time, memory or output) is `failed`; what may be
the machine's (the wall-clock deadline, a kill from outside) is `unknown`. The walls protect the machine, not the
reward: a program lives in one process with its own tests, and one that attacks them on purpose can make them pass.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from posttrain.engine import sandbox_inner
from posttrain.errors import StageError

Status = Literal["passed", "failed", "unknown"]

READABLE = ("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
"""Beside the interpreter's own folder; what is not there is left out."""
START_S = 10.0
"""Wall-clock time the walls may take to stand."""
_ENDED = re.compile(rb"\nended (-?\d+) ([\d.]+)\n\Z")


class SandboxError(StageError):
    """Nothing safe to run programs in: names what was tried and what each attempt said."""


@dataclass(frozen=True, slots=True)
class Limits:
    cpu_s: int = 3
    wall_s: float = 20.0
    """From the program's start. Much larger than the CPU time, so that only waiting, or a stalled machine, meets it."""
    memory_bytes: int = 512 << 20
    """Address space, the interpreter's own (about 30 MB) included."""
    box_bytes: int = 16 << 20
    """All files of the program together."""
    box_files: int = 1024
    """Files in the box; bubblewrap bounds only their bytes."""
    open_files: int = 64
    output_bytes: int = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Status
    detail: str
    """The end of its output, or the limit that stopped it."""


Walls = tuple[int, list[str], int, int] | None
"""Arguments of sandbox_inner.enter_namespaces; None: the walls stand already."""
Build = Callable[[Limits], tuple[list[str], Walls]]
"""Limits -> (what stands before the interpreter on the command line, the walls that the inside has to build)."""


def bubblewrap(limits: Limits) -> tuple[list[str], Walls]:
    """bwrap(1) builds the walls."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--uid", "1000", "--gid", "1000"]
    command += [f"--unshare-{name}" for name in ("user", "ipc", "pid", "net", "uts", "cgroup-try")]
    for path in readable():
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    for path in sandbox_inner.DEVICES:
        command += ["--dev-bind", path, path]
    command += ["--size", str(limits.box_bytes), "--tmpfs", sandbox_inner.BOX, "--chdir", sandbox_inner.BOX]
    return [*command, "--remount-ro", "/", "--"], None


def namespaces(limits: Limits) -> tuple[list[str], Walls]:
    """The inside builds the walls by itself (unshare(2))."""
    return [], (os.getpid(), readable(), limits.box_bytes, limits.box_files)


BUILDERS: Mapping[str, Build] = {"bubblewrap": bubblewrap, "namespaces": namespaces}
"""In the order of preference."""


def readable() -> list[str]:
    """What a program may read: paths that exist, none of them inside another."""
    paths: list[str] = []
    for path in (*READABLE, os.path.realpath(sys.base_prefix)):
        inside = any(path == other or path.startswith(f"{other}/") for other in paths)
        if os.path.exists(path) and not inside:
            paths.append(path)
    return paths


@cache
def available() -> str:
    """The builder that works on this machine, by trying; none raises SandboxError."""
    refusals: list[str] = []
    if not sandbox_inner.machine_is_known():
        wanted = "Linux on " + " or ".join(sandbox_inner.ARCHITECTURES)
        raise SandboxError(f"no sandbox: got {os.uname().sysname} on {os.uname().machine}, wanted {wanted}")
    for name in BUILDERS:
        if name == "bubblewrap" and shutil.which("bwrap") is None:
            refusals.append("bubblewrap: not installed")
            continue
        outcome = run_program("pass", limits=Limits(), builder=name)
        if outcome.status == "passed":
            return name
        refusals.append(f"{name}: {outcome.detail.strip()[-300:]}")
    raise SandboxError(
        "no sandbox: programs of a model run nowhere else. Install bubblewrap, or allow unprivileged user namespaces "
        f"(Linux 5.12 or later). Tried: {'; '.join(refusals)}"
    )


def run_program(program: str, *, limits: Limits, builder: str | None = None) -> Outcome:
    """Run a Python program inside the walls; `builder`: a key of BUILDERS, None: the one that works here."""
    prefix, walls = BUILDERS[builder or available()](limits)
    token = secrets.token_bytes(16)
    inner_limits = {
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.box_bytes,
        "open_files": limits.open_files,
    }
    reading, report = os.pipe()
    # A file in memory, not a pipe: writing to it cannot block, whatever happens on the other side.
    stdin = os.memfd_create("program")
    try:
        source = program.encode("utf-8", "replace")
        with os.fdopen(os.dup(stdin), "wb") as file:
            marshal.dump((token, source, inner_limits, walls), file)
        os.lseek(stdin, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [*prefix, *_interpreter(), str(report)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(report,),
            cwd="/",
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": sandbox_inner.BOX},
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(stdin)
        os.close(report)
    return _watch(process, reading, token, limits)


@cache
def _inside() -> str:
    return Path(sandbox_inner.__file__).read_text(encoding="utf-8")


def _interpreter() -> list[str]:
    """Not the virtual environment's: nothing that is installed there can be imported inside."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binary = os.path.realpath(os.path.join(sys.base_prefix, "bin", version))
    if not os.path.isfile(binary):
        raise SandboxError(f"no sandbox: got no interpreter at {binary}, wanted the one of this Python")
    return [binary, "-S", "-s", "-P", "-B", "-u", "-X", "utf8", "-c", _inside()]


def _watch(process: subprocess.Popen[bytes], reading: int, token: bytes, limits: Limits) -> Outcome:
    """Read both pipes until they end, a limit is met or the deadline passes; afterwards the whole tree is gone."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    received: dict[int, bytes] = {reading: b"", output: b""}
    stopped = ""
    until = time.monotonic() + START_S
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in received:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map() and not stopped:
                for key, _ in selector.select(max(0.0, until - time.monotonic())):
                    block = os.read(key.fd, 1 << 16)
                    if not block:
                        selector.unregister(key.fd)
                    elif key.fd == reading and not received[reading]:
                        until = time.monotonic() + limits.wall_s
                    received[key.fd] += block
                if len(received[output]) + len(received[reading]) > limits.output_bytes:
                    stopped = "output"
                elif selector.get_map() and time.monotonic() >= until:
                    stopped = "deadline"
    finally:
        os.close(reading)
        process.stdout.close()
        _end(process, patience_s=0.0 if stopped else 1.0)
    return _outcome(received[reading], received[output], token, stopped, limits)


def _end(process: subprocess.Popen[bytes], *, patience_s: float) -> None:
    """Kill what still runs and reap it.

    The process is the outermost one: what lies inside the walls dies with it (PR_SET_PDEATHSIG, and the process
    namespace with its first process). It is given `patience_s` to end by itself where both pipes have ended.
    """
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(report: bytes, output: bytes, token: bytes, stopped: str, limits: Limits) -> Outcome:
    text = output[-2000:].decode(errors="replace")
    if not report.startswith(b"ready\n"):
        return Outcome("unknown", f"the sandbox did not start: {text}")
    if stopped == "output":
        return Outcome("failed", f"more than {limits.output_bytes} bytes of output")
    if token in report:
        return Outcome("passed", text)
    if stopped == "deadline":
        return Outcome("unknown", f"no end within {limits.wall_s:g} s of wall-clock time")
    ended = _ENDED.search(report)
    if ended is None:
        return Outcome("unknown", "killed from outside")
    code, cpu_s = int(ended[1]), float(ended[2])
    if code != -signal.SIGKILL:
        return Outcome("failed", text)
    # The kernel's kill at the CPU limit looks like that of its out-of-memory killer, but for the time used.
    if cpu_s >= 0.9 * limits.cpu_s:
        return Outcome("failed", f"more than {limits.cpu_s} s of CPU time")
    return Outcome("unknown", "killed from outside")
