"""Which files of this repository a stage's module imports, directly or not.

python -m tests.closure           print the code dependencies that dvc.yaml, and each study's, should list
python -m tests.closure --write   and write them there
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ROOT / "dvc.yaml"
PIPELINES = (CHAIN, *sorted(ROOT.glob("studies/*/dvc.yaml")))
"""The chain and the studies, each with its own stages."""

NEUTRAL = {
    "posttrain/arguments.py": "messages",
    "posttrain/boundary.py": "messages",
    "posttrain/config.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_align.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_align_rl.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_asynchrony.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_fields.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_preference.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_rewards.py": "its values reach DVC as params; it has no defaults",
    "posttrain/config_rl.py": "its values reach DVC as params; it has no defaults",
    "posttrain/errors.py": "messages",
    "posttrain/fingerprint.py": "where checkpoints lie",
    "posttrain/guard.py": "processes",
    "posttrain/hosts.py": "processes",
    "posttrain/lean_imports.py": "how long a start takes",
    "posttrain/machine.py": "what this machine is",
    "posttrain/progress.py": "what a person sees",
    "posttrain/ranks.py": "processes",
    "posttrain/system.py": "what this machine is",
    "posttrain/tracking.py": "what MLflow gets",
    "posttrain/mlflow_sink.py": "what MLflow gets",
}
"""Modules that cannot change a stage's outs, and why; changing them reruns nothing."""


def module_file(name: str) -> Path | None:
    """The file of a module of ours; None for a library's module and for an empty package file."""
    path = ROOT / Path(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return None


def imported_names(tree: ast.AST) -> set[str]:
    """Every module name that a file imports at run time, in functions too; not what only type checkers see."""
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def direct_imports(path: Path) -> frozenset[Path]:
    names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(file for name in names if (file := module_file(name)) is not None)


def closure(path: Path) -> set[Path]:
    """All files of ours that importing this one loads, itself included."""
    found: set[Path] = set()
    front = [path]
    while front:
        file = front.pop()
        if file not in found:
            found.add(file)
            front += direct_imports(file)
    return found


@cache
def stages_of(pipeline: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its entry; of a foreach, the entry of any item."""
    stages = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def stage_module(stage: str, pipeline: Path = CHAIN) -> Path:
    """The file that a stage's command runs: `... tasks.sft` is tasks/sft.py."""
    words = str(stages_of(pipeline)[stage]["cmd"]).split()
    (module,) = [path for word in words if (path := module_file(word)) is not None]
    return module


def code_dependencies(stage: str, pipeline: Path = CHAIN) -> list[str]:
    """What dvc.yaml has to list for a stage: its closure without the neutral modules, and templates beside modules."""
    files = closure(stage_module(stage, pipeline))
    names = {file.relative_to(ROOT).as_posix() for file in files} - set(NEUTRAL)
    for file in files:
        templates = file.parent / "templates"
        if templates.is_dir() and "templates" in file.read_text(encoding="utf-8"):
            names.add(templates.relative_to(ROOT).as_posix())
    return sorted(names)


def is_code(dep: str) -> bool:
    return dep.startswith(("posttrain/", "tasks/", "studies/"))


def listed_dependencies(stage: str, pipeline: Path = CHAIN) -> list[str]:
    return sorted(dep for dep in stages_of(pipeline)[stage]["deps"] if is_code(dep))


def write(pipeline: Path) -> None:
    """Replace the code dependencies in a dvc.yaml line by line: comments and order stay."""
    lines = pipeline.read_text(encoding="utf-8").splitlines()
    stages = stages_of(pipeline)
    out: list[str] = []
    stage = ""
    while lines:
        line = lines.pop(0)
        out.append(line)
        if line.startswith("  ") and line[2] not in " #-" and line.endswith(":"):
            stage = line.strip()[:-1]
        if line.strip() == "deps:" and stage in stages:
            items = []
            while lines[0].strip().startswith("- "):
                items.append(lines.pop(0))
            indent = items[0].split("-")[0]
            out += [item for item in items if not is_code(item.strip()[2:])]
            out += [f"{indent}- {dep}" for dep in code_dependencies(stage, pipeline)]
    pipeline.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for file in PIPELINES:
        if "--write" in sys.argv:
            write(file)
        else:
            for name in stages_of(file):
                print(f"{name}:", *code_dependencies(name, file), sep="\n  ")
