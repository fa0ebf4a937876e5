"""A stage and DVC by hand, stopped in the middle: nothing is left running, and the same command then ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.test_guard import wait_for
from tests.pipeline.toy import environment, make_chain, run, running_in

DVC = (sys.executable, "-m", "dvc", "repro")
STAGE = (sys.executable, "stage.py", "a", "-", "models/a")


def within(chain: Path, stage: str, command: tuple[str, ...], **extra: str) -> subprocess.Popen[bytes]:
    """The command, once the stage that it runs is at work."""
    (chain / f"{stage}.wait").touch()
    process = subprocess.Popen(
        command,
        cwd=chain,
        env=environment(**extra),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert wait_for((chain / f"{stage}.started").exists, 120.0)
    return process


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> int:
    """Ctrl-C reaches all that a terminal runs, the others one process."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.wait(20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_stage_leaves_nothing_and_runs_again(tmp_path: Path, number: signal.Signals, code: int) -> None:
    chain = make_chain(tmp_path / "toy")
    assert stop(within(chain, "a", STAGE), number) == code
    assert wait_for(lambda: not running_in(chain), 10.0), running_in(chain)
    assert not (chain / "models/a").exists() and not (chain / "reports/a.json").exists()
    (chain / "a.wait").unlink()
    assert run(chain, *STAGE).returncode == 0
    assert (chain / "models/a/text").is_file()


SHELLS = [path for path in ("/bin/sh", "/bin/bash") if Path(path).exists()]
"""Some run the last command in a process of their own, others become it."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_stopped_dvc_leaves_nothing_and_goes_on(tmp_path: Path, number: signal.Signals, shell: str) -> None:
    chain = make_chain(tmp_path / "toy")
    assert stop(within(chain, "b", DVC, SHELL=shell), number) != 0
    assert wait_for(lambda: not running_in(chain), 10.0), running_in(chain)
    assert not (chain / "models/b").exists()
    (chain / "b.wait").unlink()
    again = run(chain, *DVC)
    assert again.returncode == 0, again.stderr
    assert "Stage 'a' didn't change" in again.stdout and "Running stage 'b'" in again.stdout
    assert (chain / "reports/evaluate/b.json").is_file()
