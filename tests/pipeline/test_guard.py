"""Nothing of a stage outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from posttrain.guard import guarded, stop
from tests.pipeline.toy import environment

TREE = """
import subprocess, sys, time
from pathlib import Path
sleep = [sys.executable, "-c", "import time; time.sleep(300)", sys.argv[1]]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
Path(sys.argv[2]).touch()
time.sleep(300)
"""

OWNER = """
import os, sys, time
from posttrain.guard import guarded
guarded(sys.argv[1:], environment=os.environ)
time.sleep(300)
"""


def alive(mark: str) -> list[str]:
    """Command lines of processes that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if mark in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_kill_9_of_the_owner_ends_the_whole_tree(tmp_path: Path) -> None:
    mark, started = f"tree-{os.getpid()}-kill", tmp_path / "started"
    command = [sys.executable, "-c", OWNER, sys.executable, "-c", TREE, mark, str(started)]
    owner = subprocess.Popen(command, env=environment())
    assert wait_for(started.exists, 60.0)
    assert len(alive(mark)) >= 4, "owner, guard, command and its two children"
    owner.kill()
    owner.wait()
    assert wait_for(lambda: not alive(mark), 10.0), alive(mark)


def test_the_guard_passes_output_and_exit_code_on() -> None:
    process = guarded([sys.executable, "-c", "import sys; print('out'); sys.exit(7)"], environment=environment())
    assert process.stdout is not None
    assert process.stdout.read() == b"out\n"
    assert process.wait(10) == 7
    stop(process)


def test_a_command_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = (
        "import signal, sys, time, pathlib\n"
        f"said = pathlib.Path({str(said)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (said.write_text('last word'), sys.exit(0)))\n"
        "print('ready', flush=True); time.sleep(300)\n"
    )
    process = guarded([sys.executable, "-c", program], environment=environment())
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    stop(process)
    assert said.read_text() == "last word"
    assert process.returncode == 143


def test_a_signal_to_the_guard_ends_its_command(tmp_path: Path) -> None:
    mark = f"tree-{os.getpid()}-term"
    started = tmp_path / "started"
    process = guarded([sys.executable, "-c", TREE, mark, str(started)], environment=environment())
    assert wait_for(started.exists, 60.0)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(15) == 143
    assert wait_for(lambda: not alive(mark), 5.0)
    stop(process)
