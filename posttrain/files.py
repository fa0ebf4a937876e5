"""Small files written whole or not at all, and the numbers in them: rounding, flattening, curves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Write through a neighbour and a rename: a reader or a crash sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fsync_tree(path: Path) -> None:
    """Force a file, or every file of a folder, to disk, so that a rename after it publishes whole files."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as content:
            os.fsync(content.fileno())


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rounded(value: Any, *, digits: int = 6) -> Any:
    """Numbers to `digits` significant digits, through lists and mappings; NaN and infinity raise ValueError."""
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _named(item, str(key), digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item, str(index), digits) for index, item in enumerate(value)]
    if isinstance(value, int):
        return value
    number = float(value)  # numpy and torch scalars too
    if not math.isfinite(number):
        raise ValueError(f"got {number}, wanted a finite number")
    return float(f"{number:.{digits}g}")


def _named(value: Any, name: str, digits: int) -> Any:
    try:
        return rounded(value, digits=digits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def flatten(values: Mapping[str, Any], *, separator: str = "/") -> dict[str, float]:
    """Numeric leaves by path: {"think": {"avg": 0.5}} -> {"think/avg": 0.5}; lists and texts are left out."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{name}": number for name, number in flatten(value, separator=separator).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[key] = float(value)
    return flat


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """One more row of a journal that `journal_rows` reads; it has its `step`."""
    with path.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(row, sort_keys=True) + "\n")


def journal_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a curve by step. A restarted run logs some steps again: the last row of a step counts."""
    if not path.is_file():
        return []
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut off by a kill; its step is logged again
        rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def curve_csv(rows: Iterable[Mapping[str, float]]) -> str:
    """CSV with `step` first and the other columns sorted; a metric that a step lacks is an empty cell."""
    rows = list(rows)
    columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
