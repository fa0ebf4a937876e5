"""The study's dvc.yaml: an arm per objective, proven dependencies, nothing of it in the chain's way."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import Params
from posttrain.fingerprint import fingerprint, stage_definition
from posttrain.job import curve_path, report_path
from studies.objectives.plan import Study
from tests.closure import (
    CHAIN,
    PIPELINES,
    ROOT,
    code_dependencies,
    imported_names,
    listed_dependencies,
    stage_module,
    stages_of,
)

PIPELINE = ROOT / "studies/objectives/dvc.yaml"
MODULES = sorted((ROOT / "studies/objectives").glob("*.py"))


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    return stage_definition("studies/objectives@grpo")


def paths(listed: list[Any]) -> list[str]:
    return [next(iter(item)) if isinstance(item, dict) else item for item in listed]


def test_arms_are_the_files_of_objectives() -> None:
    items = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"]["objectives"]["foreach"]
    assert items == sorted(path.stem for path in (ROOT / "objectives").glob("*.yaml"))


@pytest.mark.parametrize("pipeline", PIPELINES[1:], ids=lambda path: path.parent.name)
def test_code_dependencies_are_the_import_closure(pipeline: Path) -> None:
    """Run `python -m tests.closure --write` when this fails."""
    for stage in stages_of(pipeline):
        assert listed_dependencies(stage, pipeline) == code_dependencies(stage, pipeline)


def test_stages_of_the_chain_run_the_module_of_their_name() -> None:
    assert PIPELINE in PIPELINES
    for stage in stages_of(CHAIN):
        assert stage_module(stage) == ROOT / f"tasks/{stage}.py"


def test_an_arm_lists_what_it_reads_and_writes(entry: dict[str, Any]) -> None:
    assert entry["wdir"] == "../.."
    assert entry["cmd"].endswith("studies.objectives.arm --objective grpo")
    read = {"models/sft", "data/graded", "data/curated/heldout.jsonl", "data/evaluations/sft.jsonl"}
    assert set(entry["deps"]) >= read | {"objectives/grpo.yaml"}
    assert paths(entry["metrics"]) == [str(report_path("studies/objectives@grpo"))]
    assert paths(entry["plots"]) == [str(curve_path("studies/objectives@grpo"))]
    (own,) = (item for item in entry["params"] if isinstance(item, dict))
    assert own == {"studies/objectives/params.yaml": ["grpo", "watched", "arms.grpo"]}
    assert {name.partition(".")[0] for name in own["studies/objectives/params.yaml"]} == set(Study.model_fields)


def test_literal_paths_are_dependencies(entry: dict[str, Any]) -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if text.startswith(("data/", "models/")) and " " not in text:
                assert any(text == dep or text.startswith(f"{dep}/") for dep in entry["deps"]), text


def test_parameters_read_are_listed(entry: dict[str, Any]) -> None:
    tree = ast.parse((ROOT / "studies/objectives/arm.py").read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "job.params"
    }
    listed = {item for item in entry["params"] if isinstance(item, str)}
    assert read | {"grpo"} == listed  # grpo is read by plan.arm_section
    assert listed <= set(Params.model_fields)


def test_the_chain_reads_nothing_of_a_study() -> None:
    """A report that the chain reads would make `dvc repro` run something after `make objectives`."""
    written = {str(make("studies/objectives@grpo")) for make in (report_path, curve_path)}
    deps = {dep for stage in stages_of(CHAIN).values() for dep in stage["deps"]}
    assert not any(path == dep or path.startswith(f"{dep}/") for path in written for dep in deps)
    assert not any(dep.startswith("studies/") for dep in deps)


def test_studies_import_the_library_and_nobody_imports_them() -> None:
    def imported(folder: str) -> set[str]:
        files = (ROOT / folder).rglob("*.py")
        return {name.partition(".")[0] for f in files for name in imported_names(ast.parse(f.read_text("utf-8")))}

    assert imported("studies") & {"tasks", "flows", "tests", "prefect", "dvc", "mlflow"} == set()
    assert not any("studies" in imported(folder) for folder in ("posttrain", "tasks", "flows"))


def test_checkpoints_belong_to_one_arm_with_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "studies/objectives/params.yaml", "studies/objectives/dvc.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "objectives", tmp_path / "objectives")
    monkeypatch.chdir(tmp_path)

    def both() -> tuple[str, str]:
        return fingerprint("studies/objectives@grpo"), fingerprint("studies/objectives@rloo")

    start = both()
    assert start[0] != start[1]
    own = Path("studies/objectives/params.yaml")
    values = yaml.safe_load(own.read_text(encoding="utf-8"))
    values["arms"]["grpo"]["lr"] *= 2
    own.write_text(yaml.safe_dump(values), encoding="utf-8")
    faster = both()
    assert faster[0] != start[0] and faster[1] == start[1]
    with Path("objectives/rloo.yaml").open("a", encoding="utf-8") as file:
        file.write("\n")
    changed = both()
    assert changed[0] == faster[0] and changed[1] != faster[1]
    values["grpo"]["steps"] += 1
    own.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert all(now != before for now, before in zip(both(), changed, strict=True))
