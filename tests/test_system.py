from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import system
from posttrain.config import ConfigError
from posttrain.system import MARK, System, environment, load_system, processes_of


def test_defaults_without_a_file(tmp_path: Path) -> None:
    assert load_system(tmp_path / "system.yaml") == System()


def test_unknown_keys_and_wrong_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "system.yaml"
    path.write_text("threads: two\nprocesess: 2\n")
    with pytest.raises(ConfigError) as error:
        load_system(path)
    assert "threads: got 'two'" in str(error.value)
    assert "procesess" in str(error.value)


def test_slots_and_processes_are_not_both_said(tmp_path: Path) -> None:
    path = tmp_path / "system.yaml"
    path.write_text("hostfile: hosts\nprocesses: 2\n")
    with pytest.raises(ConfigError, match=r"no `processes` beside `hostfile` \(got 2\)"):
        load_system(path)


def test_two_processes_on_a_cpu_however_many_cores_and_one_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, number in ((False, 2), (True, 1)):
        monkeypatch.setattr(system, "cuda_device", lambda has_gpu=has_gpu: has_gpu)
        assert (processes_of(System()), processes_of(System(processes=3))) == (number, 3)


def test_a_variable_that_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    wanted = environment(System(threads=3))
    assert wanted["OMP_NUM_THREADS"] == "7"
    assert wanted["KMP_BLOCKTIME"] == "0"


def test_a_process_starts_again_once_in_the_right_environment(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "print('start', flush=True)\n"
        "from posttrain.system import System, apply_environment\n"
        "apply_environment(System(threads=3))\n"
        "print(os.environ['MALLOC_TOP_PAD_'], os.environ['OMP_NUM_THREADS'], sys.argv[1:])\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in (MARK, "OMP_NUM_THREADS") and "MALLOC" not in k}
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, str(program), "--model", "a b"]
    done = subprocess.run(command, env={**clean, "PYTHONPATH": root}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["start", "start", "268435456 3 ['--model', 'a b']"]
