"""A stage's run: what it leaves when it succeeds, and what it says and leaves when it does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from posttrain.config import ConfigError
from posttrain.errors import ModelError, NonFiniteError, StageError
from posttrain.job import Job, lock_holder, open_job, stage_seed
from posttrain.progress import progress_line
from posttrain.records import DataError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "profiles" / "tiny.yaml", "params.yaml")
    Path("dvc.yaml").write_text("stages:\n  sft: {cmd: x, deps: [code.py], params: [sft, seed]}\n")
    Path("code.py").write_text("1")
    return tmp_path


def work(job: Job, *, steps: int = 3) -> None:
    for step in range(1, steps + 1):
        job.log({"train/loss": 1 / step, "time/step": 9.9, "reward/x": float("nan")}, step, total=steps)


def test_a_run_leaves_its_out_its_report_and_its_curve_and_nothing_else() -> None:
    with open_job("sft") as job:
        work(job)
        with job.publish(Path("models/sft")) as folder:
            (folder / "weights").write_text("w")
        with job.publish_file(Path("data/rows.jsonl")) as file:
            file.write_text("{}\n")
        job.report({"loss": 1 / 3, "best": {"step": 3}})
    assert Path("models/sft/weights").read_text() == "w"
    assert Path("data/rows.jsonl").read_text() == "{}\n"
    assert json.loads(Path("reports/sft.json").read_text()) == {"loss": 0.333333, "best": {"step": 3}}
    assert Path("reports/curves/sft.csv").read_text() == "step,train/loss\n1,1.0\n2,0.5\n3,0.333333\n"
    assert not Path(".work/exit/sft.json").exists()
    assert not list(Path(".work/ckpt").glob("*/*")), "a finished stage needs no checkpoints"


def test_a_published_folder_replaces_the_old_one_whole() -> None:
    for text in ("old", "new"):
        with open_job("sft") as job, job.publish(Path("models/sft")) as folder:
            (folder / text).write_text(text)
    assert [path.name for path in Path("models/sft").iterdir()] == ["new"]
    assert [path.name for path in Path("models").iterdir()] == ["sft"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("params.yaml: seed: got -1"), 2, "params.yaml: seed: got -1"),
        (DataError("data.jsonl:3: field 'answer': got nothing"), 2, "data.jsonl:3"),
        (ModelError("models/x: no config.json"), 2, "models/x: no config.json"),
        (NonFiniteError("loss is nan at step 3"), 1, "loss is nan at step 3"),
        (StageError("nothing left to train on"), 1, "nothing left to train on"),
        (OSError(errno.ENOSPC, "No space left on device", "models/x"), 1, "no space left on the disk of models/x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "no space left on the disk"),
        (KeyboardInterrupt(), 130, "interrupted; the next run continues"),
    ],
)
def test_known_errors_end_with_one_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models/sft").mkdir(parents=True)
    Path("models/sft/weights").write_text("old")
    with pytest.raises(SystemExit) as stopped, open_job("sft") as job, job.publish(Path("models/sft")) as folder:
        (folder / "weights").write_text("half")
        raise error
    assert stopped.value.code == code
    written = capsys.readouterr().err
    assert written.startswith("sft: ")
    assert message in written
    assert "Traceback" not in written
    assert message in json.loads(Path(".work/exit/sft.json").read_text())["message"]
    assert Path("models/sft/weights").read_text() == "old"
    assert not list(Path(".work/tmp").glob("*/*"))


def test_a_full_disk_ends_with_one_message_and_nothing_half_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, open_job("sft") as job, job.publish(Path("models/sft")) as folder:
        (folder / "small").write_text("fits")
        Path("/dev/full").write_text("does not fit")  # the kernel's own disk that is always full
    assert stopped.value.code == 1
    assert "no space left on the disk of" in capsys.readouterr().err
    assert not Path("models/sft").exists()
    assert not list(Path(".work/tmp").glob("*/*"))


def test_a_full_disk_is_known_by_what_another_error_was_raised_from(capsys: pytest.CaptureFixture[str]) -> None:
    """torch's writer ends a failed write with `unexpected pos 704 vs 598`."""
    with pytest.raises(SystemExit), open_job("sft"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")
    assert "no space left on the disk of" in capsys.readouterr().err


def test_an_unknown_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), open_job("sft"):
        print(1 / 0)
    assert json.loads(Path(".work/exit/sft.json").read_text())["reason"] == "crash"


def test_bad_parameters_end_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 17", "seed: seventeen"))
    with pytest.raises(SystemExit) as stopped, open_job("sft"):
        pass
    assert stopped.value.code == 2
    assert "params.yaml: seed: got 'seventeen'; wanted: a valid integer" in capsys.readouterr().err


def test_sigterm_takes_the_path_of_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, open_job("sft"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_run_of_the_same_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with open_job("sft"):
        assert lock_holder("sft") == str(os.getpid())
        with pytest.raises(SystemExit) as stopped, open_job("sft"):
            pass
        with open_job("grade"):
            pass  # another stage may run
    assert stopped.value.code == 1
    assert f"already running: pid {os.getpid()}" in capsys.readouterr().err
    assert lock_holder("sft") is None


def test_checkpoints_are_found_again_by_the_same_work_and_by_no_other() -> None:
    def place() -> Path:
        with pytest.raises(SystemExit), open_job("sft") as job:
            here = job.checkpoints
            (here / "step").touch()
            raise StageError("crash")
        return here

    first = place()
    assert place() == first
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "\n# only a comment\n")
    assert place() == first
    Path("code.py").write_text("2")
    assert place() != first
    assert not first.exists(), "what no run will ask for again is removed"


def test_a_run_that_cannot_continue_an_earlier_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    said = "params, inputs or code changed after a run that did not end: starts from the beginning"
    for code, expected in (("1", False), ("1", False), ("2", True)):
        Path("code.py").write_text(code)
        with pytest.raises(SystemExit), open_job("sft") as job:
            (job.checkpoints / "step").touch()
            raise StageError("crash")
        assert (said in capsys.readouterr().out) is expected


def test_a_picture_is_for_mlflow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTTRAIN_TRACKING", raising=False)
    monkeypatch.setenv("POSTTRAIN_SPOOL", str(Path("spool").absolute()))
    Path("spool").mkdir()
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    with open_job("sft") as job:
        job.picture("line", figure)
    plt.close(figure)
    assert Path(".work/figures/sft-line.svg").is_file() and not Path("reports/figures").exists()
    assert '"folder": "figures"' in Path("spool/events.jsonl").read_text()


def test_the_curve_survives_a_crash() -> None:
    with pytest.raises(SystemExit), open_job("sft") as job:
        work(job, steps=2)
        raise StageError("crash")
    with open_job("sft") as job:
        job.log({"train/loss": 0.1}, 3, total=3)
    assert Path("reports/curves/sft.csv").read_text() == "step,train/loss\n1,1.0\n2,0.5\n3,0.1\n"


def test_a_report_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="loss: got nan"), open_job("sft") as job:
        job.report({"loss": float("nan")})
    assert not Path("reports/sft.json").exists()


def test_equal_figures_give_equal_bytes() -> None:
    contents = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 2], [3, 4])
        with open_job("evaluate@sft") as job:
            job.figure("line", figure)
        contents.append(Path("reports/figures/evaluate-sft-line.svg").read_bytes())
        plt.close(figure)
    assert contents[0] == contents[1]


def test_seeds_differ_by_stage_and_agree_within_one() -> None:
    assert stage_seed(1, "sft") != stage_seed(1, "grpo")
    assert stage_seed(1, "sft") != stage_seed(2, "sft")
    assert stage_seed(1, "evaluate@sft") == stage_seed(1, "evaluate@grpo")


def test_progress_line() -> None:
    line = progress_line({"train/loss": 1.23456, "odd": 1.0}, 12, 72, first=(2, 100.0), now=110.0)
    assert line == "step 12/72 | train/loss 1.235 | 1:00 left"  # 10 steps took 10 s, 60 are left
    assert progress_line({}, 3, None, first=(3, 0.0), now=0.0) == "step 3"
