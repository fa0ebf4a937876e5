"""What the report page is made from: the small files that the stages left. A missing one is an error, never a hole."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.chain import MODELS
from posttrain.evals.rows import QuestionRow, read_rows, same_questions
from posttrain.records import DataError

STAGES = ("curate", "grade", "grpo", "prefer", "reward_model", "align", "distill")
"""Stages whose own report is shown."""
CURVES = ("base", "sft", "grpo", "reward_model", "align", "distill")
"""Stages whose training curves are drawn."""


@dataclass(frozen=True, slots=True)
class Source:
    """The values of one JSON file, which knows its name."""

    file: str
    values: Mapping[str, Any]

    def need(self, path: str) -> Any:
        """The value at a dotted path; raises DataError with file and key when there is none."""
        here: Any = self.values
        for part in path.split("."):
            if not isinstance(here, Mapping) or part not in here:
                raise DataError(f"{self.file}: key '{path}': missing, and the report page shows it")
            here = here[part]
        return here


@dataclass(frozen=True, slots=True)
class Curve:
    """The columns of reports/curves/<stage>.csv; NaN where a step has no value."""

    file: str
    columns: Mapping[str, list[float]]

    def need(self, column: str) -> list[float]:
        if column not in self.columns:
            raise DataError(f"{self.file}: column '{column}': missing, and the report page draws it")
        return self.columns[column]


@dataclass(frozen=True, slots=True)
class Inputs:
    stages: Mapping[str, Source]
    evaluations: Mapping[str, Source]
    curves: Mapping[str, Curve]
    rows: Mapping[str, list[QuestionRow]]
    """Answers to the same questions in the same order, by model."""


def load_inputs(root: Path = Path()) -> Inputs:
    """Everything from below `root`, the folder that holds reports/ and data/; raises DataError naming what is wrong."""
    rows = {model: read_rows(root / f"data/evaluations/{model}.jsonl") for model in MODELS}
    for model in MODELS[1:]:
        same_questions(rows[MODELS[0]], rows[model])
    return Inputs(
        stages={stage: read_source(root, f"reports/{stage}.json") for stage in STAGES},
        evaluations={model: read_source(root, f"reports/evaluate/{model}.json") for model in MODELS},
        curves={stage: read_curve(root, f"reports/curves/{stage}.csv") for stage in CURVES},
        rows=rows,
    )


def read_source(root: Path, name: str) -> Source:
    path = root / name
    if not path.is_file():
        raise DataError(f"{path}: no such file, and the report page needs it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: got a JSON {type(values).__name__}, wanted an object")
    return Source(name, values)


def read_curve(root: Path, name: str) -> Curve:
    """The columns as numbers; an empty cell is a step without that metric."""
    path = root / name
    if not path.is_file():
        raise DataError(f"{path}: no such file, and the report page needs it")
    columns: dict[str, list[float]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            for column, cell in row.items():
                try:
                    columns.setdefault(column, []).append(float(cell) if cell else math.nan)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: column '{column}': got {cell!r}, wanted a number") from error
    if not columns:
        raise DataError(f"{path}: empty, wanted at least one step")
    return Curve(name, columns)
