"""What a stage depends on, as one short hash: the name of its checkpoint folder.

A checkpoint kept under the stage's name alone would be found again after its parameters changed, and the stage would
"resume" at the last step and train nothing. So the name covers everything that dvc.yaml says the stage depends on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

IGNORED = {"__pycache__"}
_TEMPLATE = re.compile(r"\$\{([\w.]+)\}")


def stage_definition(name: str) -> dict[str, Any]:
    """The entry of a stage in its dvc.yaml; `evaluate@sft` is the entry `evaluate` with its item filled in.

    A dependency may name a parameter, `models/${prefer.model}`, which DVC fills in from the params.yaml beside it.

    A study's stage is named by its folder, which has a dvc.yaml of its own: `studies/objectives@grpo` is the entry
    `objectives` of studies/objectives/dvc.yaml. Paths are the root's there too (`wdir`).
    """
    base, _, item = name.partition("@")
    folder = Path(base) if "/" in base else Path()
    stages: dict[str, Any] = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    entry: dict[str, Any] = stages[Path(base).name]
    if "foreach" in entry:
        items = entry["foreach"]
        values = items[item] if isinstance(items, dict) else item
        entry = {key: _fill(value, item, values) for key, value in entry["do"].items()}
    if any("${" in dep for dep in entry.get("deps", [])):
        params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        entry = entry | {"deps": [_TEMPLATE.sub(partial(_parameter, params), dep) for dep in entry["deps"]]}
    return entry


def _parameter(params: Any, found: re.Match[str]) -> str:
    return str(_lookup(params, found[1]))


def _fill(value: Any, key: str, item: Any) -> Any:
    if isinstance(value, dict):
        return {_fill(k, key, item): _fill(v, key, item) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(part, key, item) for part in value]
    if not isinstance(value, str):
        return value
    filled = value.replace("${key}", key).replace("${item}", str(item))
    for name, text in (item if isinstance(item, dict) else {}).items():
        filled = filled.replace(f"${{item.{name}}}", str(text))
    return filled


def fingerprint(stage: str) -> str:
    """16 hex digits of sha256 over the stage's params sections, input files and code."""
    entry = stage_definition(stage)
    sections = dict(_sections(entry.get("params", [])))
    digest = hashlib.sha256(json.dumps([stage, sections], sort_keys=True).encode())
    for dep in sorted(entry.get("deps", [])):
        for file in _files(Path(dep)):
            with file.open("rb") as content:
                digest.update(f"{file.as_posix()}:{hashlib.file_digest(content, 'md5').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _sections(listed: list[Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each params entry: a key of params.yaml, or a file with keys of its own."""
    for entry in listed:
        for file, names in (entry if isinstance(entry, dict) else {"params.yaml": [entry]}).items():
            values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            for name in names:
                yield name if file == "params.yaml" else f"{file}:{name}", _lookup(values, name)


def _lookup(values: Any, dotted: str) -> Any:
    """`grpo.steps` -> values["grpo"]["steps"]; a key that is not there counts as None, as it does for DVC."""
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file() and not IGNORED & set(p.parts))
    elif path.is_file():
        yield path
