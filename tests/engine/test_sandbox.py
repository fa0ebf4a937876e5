"""What a program of a model may try, and what must hold: no harm, a clear outcome, nothing left, in bounded time."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.engine import sandbox
from posttrain.engine.sandbox import BUILDERS, Limits, SandboxError, available, run_program
from posttrain.guard import _descendants

QUICK = Limits(cpu_s=1, wall_s=10.0, memory_bytes=256 << 20, box_bytes=1 << 20)

HARMFUL = {
    "spin": ("while True: pass", "failed", "CPU time"),
    "sleep": ("import time\ntime.sleep(1000)", "unknown", "wall-clock"),
    "wait_for_input": ("import sys\nassert sys.stdin.read() != ''", "failed", "AssertionError"),
    "eat_memory": ("kept = []\nwhile True: kept.append(bytearray(1 << 22))", "failed", "MemoryError"),
    "eat_memory_at_once": ("bytearray(1 << 40)", "failed", "MemoryError"),
    "fork": ("import os\nwhile True: os.fork()", "failed", "Operation not permitted"),
    "thread": ("import _thread\n_thread.start_new_thread(print, ())", "failed", "can't start new thread"),
    "run": ("import subprocess\nsubprocess.run(['/bin/true'])", "failed", "Operation not permitted"),
    "replace_itself": ("import os\nos.execv('/bin/true', ['true'])", "failed", "Operation not permitted"),
    "print": ("while True: print('x' * 1000)", "failed", "bytes of output"),
    "exit": ("import sys\nsys.exit(0)", "failed", ""),
    "exit_at_once": ("import os\nos._exit(0)", "failed", ""),
    "raise_exit": ("raise SystemExit", "failed", ""),
    "crash": ("import ctypes\nctypes.string_at(0)", "failed", ""),
    "kill_its_parent": ("import os\nos.kill(os.getppid(), 9)", "failed", "Operation not permitted"),
    "kill_itself": ("import os\nos.kill(os.getpid(), 9)", "failed", "Operation not permitted"),
    "recurse": ("def f(): f()\nf()", "failed", "RecursionError"),
    "fill_its_folder": ("open('a', 'wb').write(bytes(1 << 19))\nopen('b', 'wb').write(bytes(1 << 20))", "failed", ""),
    "open_many_files": ("kept = [open(f'f{n}', 'w') for n in range(100)]", "failed", "Too many open files"),
    "write_to_the_root": ("open('/outside', 'w')", "failed", "Read-only"),
    "write_to_the_system": ("open('/usr/outside', 'w')", "failed", "Read-only"),
    "make_a_folder": ("import os\nos.mkdir('/tmp')", "failed", "Read-only"),
    "open_a_socket": ("import socket\nsocket.socket()", "failed", "Operation not permitted"),
    "broken": ("def f(:", "failed", "SyntaxError"),
    "null_bytes": ("a = 1\0", "failed", "null bytes"),
    "surrogates": ("raise ValueError('\ud800')", "failed", "ValueError"),
}


def works(builder: str) -> bool:
    installed = builder != "bubblewrap" or shutil.which("bwrap") is not None
    return installed and run_program("pass", limits=Limits(), builder=builder).status == "passed"


@pytest.fixture(params=[name for name in sorted(BUILDERS) if works(name)])
def builder(request: pytest.FixtureRequest) -> str:
    """Each that works here; `test_there_is_a_sandbox_here` wants one."""
    return str(request.param)


def test_there_is_a_sandbox_here() -> None:
    assert available() in BUILDERS


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_programs(builder: str, name: str) -> None:
    program, status, said = HARMFUL[name]
    limits = dataclasses.replace(QUICK, wall_s=0.3) if status == "unknown" else QUICK
    before = _descendants(os.getpid())
    start = time.monotonic()
    outcome = run_program(program, limits=limits, builder=builder)
    assert time.monotonic() - start < 5.0
    assert outcome.status == status, outcome
    assert said in outcome.detail
    assert _descendants(os.getpid()) - before == set()


def test_a_program_works_in_its_own_folder_and_keeps_its_output(builder: str) -> None:
    program = (
        "import json, math, os, random, re, typing, collections\n"
        "open('a.txt', 'w').write('x' * 1000)\n"
        "assert open('a.txt').read() == 'x' * 1000 and os.listdir('.') == ['a.txt']\n"
        "assert os.getcwd() == os.environ['HOME'] == '/box' and __name__ != '__main__'\n"
        "print('seen')\n"
    )
    outcome = run_program(program, limits=QUICK, builder=builder)
    assert outcome.status == "passed", outcome
    assert outcome.detail == "seen\n"
    assert run_program("import os\nassert os.listdir('.') == []", limits=QUICK, builder=builder).status == "passed"


def test_nothing_outside_is_seen_or_touched(builder: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    repository = Path(sandbox.__file__).parents[2]
    hidden = [str(secret), str(repository / "pyproject.toml"), "/etc/passwd", "/proc/self", "/sys", "/home"]
    program = (
        "import os, sys\n"
        f"for path in {hidden}:\n"
        "    assert not os.path.exists(path), path\n"
        f"for write in (lambda: open({str(secret)!r}, 'w'), lambda: os.makedirs({str(tmp_path)!r})):\n"
        "    try: write()\n"
        "    except OSError: pass\n"
        "    else: raise AssertionError('written')\n"
        "assert sorted(os.listdir('/dev')) == ['null', 'random', 'urandom', 'zero']\n"
        "assert set(os.environ) <= {'PYTHONHASHSEED', 'LANG', 'HOME', 'PWD', 'LC_CTYPE'}, dict(os.environ)\n"
        "assert not [path for path in sys.path if 'site-packages' in path]\n"
        "assert os.getuid() == 1000 and os.getpid() < 10\n"
    )
    outcome = run_program(program, limits=QUICK, builder=builder)
    assert outcome.status == "passed", outcome
    assert secret.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [secret]


def test_the_network_is_not_there(builder: str) -> None:
    """Not even the loopback: a server of the host is not reached, were there a way to a socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1.0)"
        assert run_program(program, limits=QUICK, builder=builder).status == "failed"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_system_calls_that_lead_out_are_refused(builder: str) -> None:
    """Straight to the kernel, without the library: EPERM (1) from each, by x86_64's second convention too."""
    machine = os.uname().machine
    column = sandbox.sandbox_inner.ARCHITECTURES[machine][0]
    numbers = [call[column] for call in sandbox.sandbox_inner.FORBIDDEN.values() if call[column]]
    if machine == "x86_64":
        numbers += [0x40000000 | 39]
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {numbers}:\n"
        "    ctypes.set_errno(0)\n"
        "    assert (libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()) == (-1, 1), number\n"
    )
    outcome = run_program(program, limits=QUICK, builder=builder)
    assert outcome.status == "passed", outcome


def test_walls_alone_hold_without_the_filter(monkeypatch: pytest.MonkeyPatch, builder: str, tmp_path: Path) -> None:
    """The second lock is off here: namespaces and mounts must do without it."""
    text = sandbox._inside().replace("    forbid(writing=False)\n", "")
    assert "forbid(writing=False)" not in text
    monkeypatch.setattr(sandbox, "_inside", lambda: text)
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        program = (
            "import ctypes, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"assert socket.socket().connect_ex(('127.0.0.1', {server.getsockname()[1]})) != 0\n"
            "assert libc.mount(b'none', b'/box', b'tmpfs', 0, None) == -1\n"
            "assert libc.umount2(b'/usr', 2) == -1\n"
            f"assert not os.path.exists({str(secret)!r})\n"
            "for path in ('/', '/usr', '/dev'):\n"
            "    try: open(path + '/outside', 'w')\n"
            "    except OSError: pass\n"
            "    else: raise AssertionError(path)\n"
            "for pid in range(10, 2000):\n"
            "    try: os.kill(pid, 0)\n"
            "    except ProcessLookupError: pass\n"
            "    else: raise AssertionError(pid)\n"
        )
        outcome = run_program(program, limits=QUICK, builder=builder)
        assert outcome.status == "passed", outcome
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_program_dies_with_the_process_that_runs_it(builder: str) -> None:
    program = (
        "from posttrain.engine.sandbox import *\n"
        f"run_program('import time; time.sleep(1000)', limits=Limits(wall_s=1000.0), builder={builder!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        end = time.monotonic() + 10.0
        while len(inside := _descendants(parent.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        inside = _descendants(parent.pid)
        assert len(inside) >= 2
        parent.kill()
    end = time.monotonic() + 5.0
    while alive(inside) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(inside) == set()


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def test_a_kill_from_outside_says_nothing_about_the_program(builder: str) -> None:
    """As the kernel's out-of-memory killer would."""
    program = (
        "import os, signal, sys, threading, time\n"
        "from posttrain.engine.sandbox import *\nfrom posttrain.guard import _descendants\n"
        "def kill():\n"
        "    time.sleep(1.0)\n"
        "    os.kill(max(_descendants(os.getpid())), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        f"print(run_program('import time; time.sleep(1000)', limits=Limits(), builder={builder!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert "Outcome(status='unknown', detail='killed from outside')" in done.stdout, done


def test_nothing_safe_is_refused_with_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(limits: Limits) -> tuple[list[str], object]:
        return ["sh", "-c", "echo no namespaces for you; exit 1"], None

    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "BUILDERS", {"bubblewrap": broken, "namespaces": broken})
    available.cache_clear()
    try:
        with pytest.raises(
            SandboxError, match=r"Tried: bubblewrap: not installed; namespaces: .*no namespaces for you"
        ):
            run_program("pass", limits=Limits())
        monkeypatch.setattr(sandbox.sandbox_inner, "machine_is_known", lambda: False)
        with pytest.raises(SandboxError, match="wanted Linux on x86_64 or aarch64"):
            available()
    finally:
        available.cache_clear()
