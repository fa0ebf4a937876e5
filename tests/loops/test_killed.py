"""kill -9 of a training, in the middle: what is started again ends with the very same weights."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.loops.every_loop import ALONE, LONG, start

pytestmark = pytest.mark.slow


def result(folder: Path, name: str) -> Path:
    return folder / f"{name}-0.pt"


def finish(folder: Path) -> None:
    """All loops, each from where it is, to their ends."""
    for processes, names in ((2, LONG), (1, ALONE)):
        process = start(folder, *names, processes=processes)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]


def kill_after_a_checkpoint(folder: Path, name: str) -> None:
    """At a moment that differs from run to run."""
    process = start(folder, name, processes=2 if name in LONG else 1)
    end = time.monotonic() + 120
    while not list((folder / "work" / name).rglob("COMMITTED")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not result(folder, name).is_file(), "it was over before it was killed"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of runs that nobody disturbed, and of the same ones after a kill each."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    finish(whole)
    for name in (*LONG, *ALONE):
        kill_after_a_checkpoint(killed, name)
    finish(killed)
    return whole, killed


@pytest.mark.parametrize("name", [*LONG, *ALONE])
def test_killed_is_uninterrupted(folders: tuple[Path, Path], name: str) -> None:
    whole, resumed = (torch.load(result(folder, name), weights_only=True) for folder in folders)
    assert 0 < len(resumed["steps"]) < len(whole["steps"]), "it went on where it was, not from the start"
    assert resumed["summary"] == whole["summary"]
    assert all(torch.equal(resumed["weights"][key], whole["weights"][key]) for key in whole["weights"])
