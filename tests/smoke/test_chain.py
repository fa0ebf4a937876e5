"""The whole chain on the smoke profile, as a person runs it: flow, DVC, MLflow, page. One run, many looks at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from flows.post_train import STAGES
from posttrain.chain import MODELS

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"avg", "pass_at_k", "tokens_mean", "tokens_mean_correct", "tokens_mean_wrong", "language_mixing", "ece"}


def run(folder: Path, *command: str, timeout: float = 900.0) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("POSTTRAIN", "MLFLOW", "PREFECT"))}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the smoke profile, after one run of the flow."""
    folder = tmp_path_factory.mktemp("smoke") / "posttrain"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0"):
        # The reference run's results are another profile's.
        if name and (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("reports/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    assert run(folder, sys.executable, "-m", "posttrain.cli", "use", "smoke").returncode == 0
    # Half the imports; every loop runs as two processes in tests/loops/test_shared.py.
    (folder / "system.yaml").write_text("processes: 1\n")
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "start")):
        assert run(folder, "git", *command).returncode == 0
    done = run(folder, sys.executable, "-m", "flows.post_train")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "reports/index.html" in done.stdout
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_its_numbers(clone: Path, model: str) -> None:
    result = json.loads((clone / f"reports/evaluate/{model}.json").read_text())
    assert (result["model"], result["questions"], result["samples"]) == (model, 24, 2)
    for mode in ("think", "no_think"):
        assert set(result[mode]) >= KEYS
        assert 0.0 <= result[mode]["avg"]["low"] <= result[mode]["avg"]["value"] <= result[mode]["avg"]["high"] <= 1.0
    assert [point["tokens"] for point in result["budget"]] == [0, 8, 16]
    before = result["paired_to_previous"]
    assert (before and before["previous"]) == (MODELS[MODELS.index(model) - 1] if model != "base" else None)


def test_the_page_stands_alone(clone: Path) -> None:
    page = (clone / "reports/index.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_every_stage_is_a_finished_run_below_one_parent(clone: Path) -> None:
    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name("posttrain/smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert sorted(r.data.tags["stage"] for r in runs if r not in parents) == sorted(STAGES)
    lock = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    (grpo,) = [r for r in runs if r.data.tags.get("stage") == "grpo"]
    assert grpo.data.tags["dvc.out.models/grpo"] == lock["grpo"]["outs"][0]["md5"]


def test_nothing_is_left_to_do_and_git_shows_only_results(clone: Path) -> None:
    again = run(clone, "dvc", "repro")
    assert again.returncode == 0 and "Running stage" not in again.stdout
    assert run(clone, "dvc", "status", "-q", "dvc.yaml").returncode == 0
    changed = [line[3:] for line in run(clone, "git", "status", "--porcelain").stdout.splitlines()]
    assert all(name.startswith(("dvc.lock", "reports/")) for name in changed), changed


def test_one_key_of_grpo_makes_only_grpo_and_what_follows_stale(clone: Path) -> None:
    params = clone / "params.yaml"
    before = params.read_text()
    values = yaml.safe_load(before)
    values["grpo"]["optimizer"]["lr"] *= 2
    params.write_text(yaml.safe_dump(values))
    dry = run(clone, "dvc", "repro", "--dry").stdout
    params.write_text(before)
    for stage in ("base", "curate", "sft", "grade", "evaluate@sft"):
        assert f"'{stage}' didn't change" in dry, dry
    assert "Running stage 'grpo'" in dry


def test_the_same_params_give_the_same_weights(clone: Path) -> None:
    first = (clone / "models/sft/model.safetensors").read_bytes()
    forced = run(clone, "dvc", "repro", "-s", "-f", "--no-run-cache", "sft")
    assert forced.returncode == 0, forced.stderr
    assert (clone / "models/sft/model.safetensors").read_bytes() == first
    assert run(clone, "dvc", "status", "-q", "dvc.yaml").returncode == 0


def sample_with_vllm(clone: Path, *stages: tuple[str, ...], grpo: dict[str, Any], system: str) -> dict[str, Any]:
    """Stages run by hand with servers in the place of the decode loop; the report of stage grpo."""
    values = yaml.safe_load((clone / "params.yaml").read_text())
    values["engine"] |= {"rollout": "vllm", "canary_tolerance": 0.01}
    values["grpo"] |= grpo
    (clone / "params.yaml").write_text(yaml.safe_dump(values))
    (clone / "system.yaml").write_text(f"processes: 1\n{system}")
    before = (clone / "models/grpo/model.safetensors").read_bytes()
    for command in stages:
        done = run(clone, sys.executable, "-m", *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report: dict[str, Any] = json.loads((clone / "reports/grpo.json").read_text())
    assert report["steps"] == 3
    assert (clone / "models/grpo/model.safetensors").read_bytes() != before
    return report


@pytest.mark.vllm
@pytest.mark.slow
def test_grpo_and_evaluate_sample_with_vllm_when_the_profile_asks_for_it(clone: Path) -> None:
    """By hand, after all others: the same stages with servers instead of the decode loop, canary after every sync."""
    report = sample_with_vllm(clone, ("tasks.grpo",), ("tasks.evaluate", "--model", "grpo"), grpo={}, system="")
    assert 0.0 < report["end"]["rollout/mismatch"] < 0.01  # other kernels, the same weights
    assert json.loads((clone / "reports/evaluate/grpo.json").read_text())["questions"] == 24


@pytest.mark.vllm
@pytest.mark.slow
def test_grpo_samples_ahead_with_vllm_and_weights_by_broadcast(clone: Path) -> None:
    ahead = {"asynchrony": {"kind": "async", "max_staleness": 1, "partial": "none"}}
    report = sample_with_vllm(clone, ("tasks.grpo",), grpo=ahead, system="vllm_weights: broadcast\n")
    assert 0.0 < report["end"]["rollout/staleness"] < 1.0  # a mean over steps, of which the first has fresh samples
