"""The table of docs/reward_models.md, from the study's report. A test compares the two: no number is typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.evals.inputs import Source
from posttrain.evals.readme import with_block
from posttrain.files import write_atomic

PAGE = Path("docs/reward_models.md")
REPORT = Path("reports/studies/reward_models.json")
COMMAND = "python -m studies.reward_models"
NOTHING = f"Not run yet: `{COMMAND}`, after the chain as far as stage prefer."
HEADER = (
    "body", "parameters", "pairs", "accuracy, %", "over fewest pairs, points", "over first body, points",
    "single seeds, %", "as the judge, %", "log loss", "ECE",
)  # fmt: skip


def block(report: Mapping[str, Any] | None) -> str:
    """What stands between the page's markers: the table with its conditions, or how to get one."""
    if report is None:
        return NOTHING
    source = Source(str(REPORT), dict(report))
    cells = source.need("cells")
    body, share = cells[0]["body"], cells[0]["share"]
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *(_row(cell, body, share) for cell in cells)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return (
        f"{table}\n\n{source.need('heldout_pairs')} held-out pairs of {source.need('heldout_prompts')} prompts, mean "
        f"of {source.need('seeds')} seeds; [95 % bootstrap interval over prompts]; single seeds from low to high. "
        f"Written from `{REPORT}` by `{COMMAND}`."
    )


def write_page(report: Mapping[str, Any]) -> None:
    """Put the report's table into the page."""
    write_atomic(PAGE, with_block(PAGE.read_text(encoding="utf-8"), block(report)))


def _row(cell: Mapping[str, Any], first_body: str, first_share: float) -> tuple[str, ...]:
    return (
        cell["body"],
        f"{cell['parameters']:,}",
        str(cell["pairs"]),
        _interval(cell["accuracy"], sign=""),
        "-" if cell["share"] == first_share else _interval(cell["over_fewest_pairs"], sign="+"),
        "-" if cell["body"] == first_body else _interval(cell["over_first_body"], sign="+"),
        " ".join(f"{100 * accuracy:.1f}" for accuracy in sorted(cell["per_seed"])),
        _interval(cell["accuracy_to_judge"], sign=""),
        f"{cell['log_loss']:.3f}",
        f"{cell['ece']:.3f}",
    )


def _interval(value: Mapping[str, float], *, sign: str) -> str:
    middle, low, high = (f"{100 * value[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"
