"""What the folder list promises: import directions, the three lists of stages, proven dependencies, lengths."""

from __future__ import annotations

import ast
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from posttrain.chain import MODELS
from posttrain.config import Params
from posttrain.profiles import compose
from tests.closure import ROOT, code_dependencies, imported_names, listed_dependencies

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ALGORITHM = ("chat", "curation", "rewards", "losses", "rl")
FILE_LINES, FUNCTION_LINES = 400, 60
LONGER = {"posttrain/config.py": 500}
"""Files that may be longer: one list of fields, read from top to bottom."""


def tracked(*patterns: str) -> list[Path]:
    """Files that are in git or could be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted({ROOT / name for name in names if name and (ROOT / name).is_file()})


PYTHON = tracked("*.py")


def imports_of(folder: str) -> dict[Path, set[str]]:
    files = [path for path in PYTHON if (ROOT / folder) in path.parents]
    return {path: imported_names(ast.parse(path.read_text(encoding="utf-8"))) for path in files}


def offenders(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in imports_of(folder).items()
        for name in names
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def test_imports_point_one_way() -> None:
    assert offenders("posttrain", "prefect", "dvc", "tasks", "flows", "tests") == []
    assert offenders("tasks", "flows", "dvc", "tests") == []
    assert offenders("flows", "torch", "transformers", "dvc", "tests") == []
    stages_see_no_prefect = [line for line in offenders("tasks", "prefect") if "tasks/stage.py" not in line]
    assert stages_see_no_prefect == []


@pytest.mark.parametrize("folder", ALGORITHM)
def test_algorithm_sees_neither_engine_nor_loops(folder: str) -> None:
    system = ("posttrain.engine", "posttrain.loops", "posttrain.evals", "posttrain.job", "posttrain.tracking")
    assert offenders(f"posttrain/{folder}", *system, "deepspeed", "vllm") == []


def test_engine_sees_neither_loops_nor_evals() -> None:
    assert offenders("posttrain/engine", "posttrain.loops", "posttrain.evals") == []


def test_the_three_lists_of_stages_are_equal() -> None:
    modules = {path.stem for path in (ROOT / "tasks").glob("[a-z]*.py")} - {"stage"}
    assert modules == set(STAGES)

    tree = ast.parse((ROOT / "flows" / "post_train.py").read_text(encoding="utf-8"))
    called = [
        str(ast.literal_eval(node.args[0]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "stage"
    ]
    constant = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STAGES"
    )
    expected = {f"evaluate@{item}" for item in STAGES["evaluate"]["foreach"]} | (set(STAGES) - {"evaluate"})
    assert set(called) == expected
    assert tuple(called) == constant


def test_evaluated_models_are_those_of_the_chain() -> None:
    items = STAGES["evaluate"]["foreach"]
    assert tuple(items) == MODELS
    for before, model in pairwise(MODELS):
        assert items[model]["previous"] == f"data/evaluations/{before}.jsonl"


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage: str) -> None:
    """Run `python -m tests.closure --write` when this fails."""
    assert listed_dependencies(stage) == code_dependencies(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_read_are_listed(stage: str) -> None:
    """Every `job.params.<section>` of a stage's module is among its params; whole sections or dotted keys."""
    entry = STAGES[stage].get("do", STAGES[stage])
    tree = ast.parse((ROOT / "tasks" / f"{stage}.py").read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("params"):
            assert node.attr in Params.model_fields
            parent = parents[node]
            dotted = f"{node.attr}.{parent.attr}" if isinstance(parent, ast.Attribute) else node.attr
            assert node.attr in entry["params"] or dotted in entry["params"], f"params.{dotted} of tasks/{stage}.py"


@pytest.mark.parametrize("stage", STAGES)
def test_paths_used_are_dependencies_or_outs(stage: str) -> None:
    """Every literal data/... or models/... path of a stage's module is declared, itself or by a folder above it."""
    entry = STAGES[stage].get("do", STAGES[stage])
    declared = [next(iter(item)) if isinstance(item, dict) else item for item in entry["deps"] + entry.get("outs", [])]
    tree = ast.parse((ROOT / "tasks" / f"{stage}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            path = node.value
            if path.startswith(("data/", "models/")) and " " not in path and not path.endswith("/"):
                assert any(path == known or path.startswith(f"{known}/") for known in declared), path


@pytest.mark.parametrize("stage", STAGES)
def test_figures_drawn_are_declared(stage: str) -> None:
    plots = [next(iter(item)) if isinstance(item, dict) else item for item in STAGES[stage].get("plots", [])]
    tree = ast.parse((ROOT / "tasks" / f"{stage}.py").read_text(encoding="utf-8"))
    drawn = [
        f"reports/figures/{stage}-{ast.literal_eval(node.args[0])}.svg"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "figure"
    ]
    assert set(drawn) == {plot for plot in plots if plot.endswith(".svg")}


def test_every_stage_is_described_and_keeps_nothing() -> None:
    for name, stage in STAGES.items():
        entry = stage.get("do", stage)
        assert entry["desc"], name
        assert "always_changed" not in entry
        assert not any("persist" in item for out in entry["outs"] if isinstance(out, dict) for item in out.values())


def test_artifact_folders_hold_no_python() -> None:
    assert [path for path in tracked("models", "data") if path.suffix == ".py"] == []
    assert not list((ROOT / "models").glob("__init__.py")) + list((ROOT / "data").glob("__init__.py"))


def test_package_files_are_empty() -> None:
    """But for the stages' and the benchmarks': what shortens a start comes before the first import, in one place."""
    full = [path for path in PYTHON if path.name == "__init__.py" and path.read_text(encoding="utf-8")]
    assert sorted(full) == [ROOT / "benchmarks/__init__.py", ROOT / "tasks/__init__.py"]


def test_lengths() -> None:
    long: list[str] = []
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if text.count("\n") > LONGER.get(name.as_posix(), FILE_LINES):
            long.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_committed_parameters_are_the_tiny_profile() -> None:
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == compose("tiny", None, root=ROOT)
