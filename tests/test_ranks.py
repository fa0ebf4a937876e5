"""A stage whose work two processes share: it leaves what one leaves, and ends as one, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.system import MARK

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "profiles" / "tiny.yaml", tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages:\n  sft: {cmd: x, deps: [code.py], params: [sft, seed]}\n")
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "system.yaml").write_text("processes: 2\nthreads: 1\n")
    return tmp_path


def start(case: str, project: Path, *launcher: str) -> subprocess.Popen[str]:
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "POSTTRAIN", "MLFLOW")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    env |= {"PYTHONPATH": str(ROOT), "POSTTRAIN_TRACKING": "off", "DS_ACCELERATOR": "cpu", MARK: "1"}
    return subprocess.Popen(
        [*launcher, sys.executable, "-m", *(["tests.ranks_job", case] if "." not in case else [case])],
        cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def message(project: Path) -> str:
    text: str = json.loads((project / ".work/exit/sft.json").read_text())["message"]
    return text


def pids(project: Path) -> list[int]:
    """Of both processes, once both are at work."""
    files = [project / f"pid-{rank}" for rank in range(2)]
    end = time.monotonic() + 200
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    """Within seconds; a process that only waits to be collected is gone."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_the_work_is_shared_and_its_results_are_left_once(project: Path) -> None:
    code, out, err = finish(start("shares", project))
    assert code == 0, err
    assert (project / "data/squares.txt").read_text() == "[0, 1, 4, 9, 16]"
    assert json.loads((project / "reports/sft.json").read_text()) == {"processes": 2}
    assert out.count("once") == 1
    assert (project / "reports/curves/sft.csv").read_text() == "step,train/loss\n1,1.0\n"
    assert not list((project / ".work/tmp").glob("*/*/*"))


@pytest.mark.parametrize("case", ["crash", "late"])
def test_a_crash_of_the_second_is_the_end_of_the_stage(project: Path, case: str) -> None:
    code, _, err = finish(start(case, project))
    assert code == 1
    assert "sft: rank 1: ZeroDivisionError: " in err
    assert "ZeroDivisionError" in message(project)
    assert "Traceback" in (project / ".work/ranks/sft/1.log").read_text()


def test_what_all_find_is_said_once(project: Path) -> None:
    code, _, err = finish(start("bad_input", project))
    assert code == 2
    assert err.count("data.jsonl:3") == 1
    assert message(project) == "data.jsonl:3: field 'answer': got nothing, wanted text"


def test_what_only_the_second_knows_is_said_too(project: Path) -> None:
    code, _, _ = finish(start("one_knows_why", project))
    assert code == 1
    assert message(project).splitlines() == [
        "loss is nan",
        "rank 1: loss is nan; the response at fault: work/nonfinite-1.jsonl",
    ]


@pytest.mark.parametrize(
    ("case", "said"), [("nan_loss", "step 0: loss is nan"), ("nan_gradient", "gradient norm is nan")]
)
def test_what_is_no_number_on_one_rank_stops_all_before_the_step(project: Path, case: str, said: str) -> None:
    code, _, err = finish(start(case, project))
    assert code == 1
    assert err.count(said) == 1 and "Traceback" not in err, err
    assert message(project).startswith(said) and "rank 1" not in message(project), "both said the same"
    assert [(project / f"changed-{rank}").read_text() for rank in range(2)] == ["0.0", "0.0"]


@pytest.fixture
def small_disk(project: Path) -> tuple[str, ...]:
    """A command that puts a disk of 2 MiB in the place of the project's .work, for the command behind it."""
    (project / ".work").mkdir()
    mount = "mount -t tmpfs -o size=2m tmpfs .work"
    within = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if subprocess.run([*within, mount], cwd=project, capture_output=True).returncode:
        pytest.skip("this machine lets no user mount anything in a namespace")
    return (*within, f'{mount} && "$@"; first=$?; cat .work/exit/sft.json; "$@"; exit $first', "sh")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    project: Path, small_disk: tuple[str, ...], processes: int
) -> None:
    """The same command twice: it fails, then goes on from the checkpoint for which there was room."""
    (project / "system.yaml").write_text(f"processes: {processes}\nthreads: 1\n")
    code, out, err = finish(start("full_disk", project, *small_disk))
    assert code == 1
    assert "sft: continues from step 0" in out and "sft: continues from step 3" in out
    assert "no space left on the disk of" in err and "Traceback" not in err, err
    assert "passed over" not in err, "nothing half-written is left"


def test_a_killed_second_process_is_named(project: Path) -> None:
    process = start("wait", project)
    first, second = pids(project)
    os.kill(second, signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1
    assert "rank 1: killed by signal 9" in err
    assert gone(first) and gone(second)


def test_nothing_outlives_the_first_process(project: Path) -> None:
    process = start("wait", project)
    first, second = pids(project)
    os.kill(first, signal.SIGKILL)
    assert gone(second)
    finish(process)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_to_the_group_end_all_with_one_message(project: Path, number: int, code: int) -> None:
    process = start("wait", project)
    first, second = pids(project)
    time.sleep(0.5)
    os.killpg(first, number)
    assert finish(process)[0] == code
    assert gone(first) and gone(second)
