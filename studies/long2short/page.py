"""The table of docs/long_to_short.md, from the study's report. A test compares the two: no number is typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.evals.inputs import Source
from posttrain.evals.readme import with_block
from posttrain.files import write_atomic

PAGE = Path("docs/long_to_short.md")
REPORT = Path("reports/studies/long2short.json")
COMMAND = "python -m studies.long2short"
NOTHING = f"Not run yet: `{COMMAND}`, after the chain as far as stage grade."
HEADER = (
    "model", "accuracy, %", "against long, points", "tokens of right answers", "right per 1000 tokens", "seconds"
)  # fmt: skip


def block(report: Mapping[str, Any] | None) -> str:
    """What stands between the page's markers: the table with its conditions, or how to get one."""
    if report is None:
        return NOTHING
    source = Source(str(REPORT), dict(report))
    models = source.need("models")
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *(_row(name, values) for name, values in models.items())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        f"{table}\n\n{source.need('questions')} held-out questions, {source.need('samples')} samples each; "
        f"[95 % bootstrap interval over questions]; seconds of training, sampling for it included. Written from "
        f"`{REPORT}` by `{COMMAND}`."
    )


def write_page(report: Mapping[str, Any]) -> None:
    """Put the report's table into the page."""
    write_atomic(PAGE, with_block(PAGE.read_text(encoding="utf-8"), block(report)))


def _row(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        _interval(values["accuracy"], scale=100.0, sign=""),
        "-" if name == "long" else _interval(values["difference"], scale=100.0, sign="+"),
        _interval(values["tokens_right"], scale=1.0, sign=""),
        _interval(values["efficiency"], scale=1.0, sign=""),
        f"{values['seconds']:.0f}",
    )


def _interval(value: Mapping[str, float] | None, *, scale: float, sign: str) -> str:
    if value is None:
        return "-"
    middle, low, high = (f"{scale * value[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"
