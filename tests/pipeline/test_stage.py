"""One stage called as the flow calls it, on the toy chain: what DVC did, what the stage said, who runs it already."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from rich.console import Console

from posttrain.config import load_params
from posttrain.errors import StageError, StageLockedError
from posttrain.fingerprint import fingerprint, stage_definition
from posttrain.progress import Display
from tasks.stage import Context, TransientError, failure, output_lines, run_stage
from tests.pipeline.test_guard import wait_for
from tests.pipeline.toy import environment, make_chain, run


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def output(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.chdir(chain)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    yield io.StringIO()


def call(stage: str, output: io.StringIO) -> str:
    display = Display(["a", "b", "evaluate@b"], Console(file=output, width=200))
    context = Context(load_params(), "toy", None, display, lambda folder: None, {})
    with disable_run_logger():
        return run_stage.fn(stage, context)


def test_ran_skipped_restored(chain: Path, output: io.StringIO) -> None:
    assert [call(stage, output) for stage in ("a", "b", "evaluate@b")] == ["ran"] * 3
    assert [call(stage, output) for stage in ("a", "evaluate@b")] == ["skipped"] * 2
    shown = output.getvalue()
    assert "( 1/3) a: step 3/3 | train/loss 0.3333" in shown
    assert "( 2/3) b                ran" in shown

    first = Path("models/a/text").read_text()
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("seed: 17", "seed: 18"))
    assert call("a", output) == "ran"
    assert Path("models/a/text").read_text() != first
    Path("params.yaml").write_text(params)
    assert call("a", output) == "restored"
    assert Path("models/a/text").read_text() == first
    assert run(chain, sys.executable, "-m", "dvc", "status", "-q").returncode == 0


def test_a_failing_stage_speaks_for_itself(output: io.StringIO) -> None:
    Path("b.fail").touch()
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 17", "seed: 19"))
    call("a", output)
    with pytest.raises(StageError, match=r"^b: the sky is green, wanted blue$"):
        call("b", output)
    assert not Path("models/b").exists()
    Path("b.fail").unlink()
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 19", "seed: 17"))


def test_a_stage_that_runs_already_is_refused_with_its_pid(output: io.StringIO) -> None:
    Path("b.wait").touch()
    by_hand = subprocess.Popen(
        [sys.executable, "stage.py", "b", "models/a/text", "models/b"], env=environment(), stderr=subprocess.PIPE
    )
    assert wait_for(Path("b.started").exists, 60.0)
    with pytest.raises(StageLockedError, match=f"^b: already running: pid {by_hand.pid}$"):
        call("b", output)
    again = run(Path.cwd(), sys.executable, "stage.py", "b", "models/a/text", "models/b")
    assert again.returncode == 1
    assert again.stderr == f"b: already running: pid {by_hand.pid}\n"
    by_hand.terminate()
    _, said = by_hand.communicate(timeout=20)
    assert by_hand.returncode == 143
    assert said.decode().startswith("b: stopped by SIGTERM")
    Path("b.wait").unlink()


def test_a_busy_repository_may_be_tried_again(output: io.StringIO) -> None:
    assert isinstance(failure("c", 255, ["ERROR: Unable to acquire lock. Most likely..."]), TransientError)
    assert not isinstance(failure("c", 255, ["ERROR: failed to reproduce 'c'"]), TransientError)


def test_progress_bars_are_thinned() -> None:
    bar = b"".join(b"\r%d%%" % percent for percent in range(100))
    stream = io.BytesIO(b"one\n\ntwo" + bar + b"\nend")
    assert list(output_lines(stream)) == ["one", "two", "99%", "end"]


def test_the_entry_of_an_item_and_its_fingerprint(output: io.StringIO) -> None:
    entry = stage_definition("evaluate@b")
    assert entry["deps"] == ["models/b", "models/a", "stage.py"]
    assert entry["outs"] == ["data/evaluations/b"]
    before = fingerprint("evaluate@b")
    assert fingerprint("b") != before
    Path("models/b").mkdir(parents=True, exist_ok=True)
    Path("models/b/more").write_text("x")
    assert fingerprint("evaluate@b") != before
    os.remove("models/b/more")
