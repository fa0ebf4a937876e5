"""What curation dropped, at which filter and why: nothing leaves the data silently.

A filter is any function that gives each row None (kept) or the reason why it goes; DropTable applies the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.records import Problem

EXAMPLES = 3
EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Dropped:
    """The rows that one filter dropped for one reason."""

    filter: str
    reason: str
    """Empty when the filter dropped nothing."""
    rows_in: int
    """Rows the filter saw."""
    rows_out: int
    """Rows it kept, after all of its reasons."""
    dropped: int
    """Rows that went for this reason."""
    examples: tuple[str, ...]
    """Prompts of up to three of them; of a long one the two ends, as a template's end is what differs."""


@dataclass(slots=True)
class DropTable:
    """One entry per filter and reason, in the order in which the filters ran."""

    entries: list[Dropped] = field(default_factory=list)

    def apply(self, name: str, problems: Sequence[Problem], reasons: Sequence[str | None]) -> list[Problem]:
        """The rows without a reason to go; the others are entered."""
        kept = [problem for problem, reason in zip(problems, reasons, strict=True) if reason is None]
        found = dict.fromkeys(reason for reason in reasons if reason is not None) or {"": None}
        for reason in sorted(found):
            gone = [problem for problem, own in zip(problems, reasons, strict=True) if own == reason]
            examples = tuple(_shortened(problem.prompt) for problem in gone[:EXAMPLES])
            self.entries.append(Dropped(name, reason, len(problems), len(kept), len(gone), examples))
        return kept

    def to_json(self) -> list[dict[str, Any]]:
        """The table as JSON values, for the report and the tracker."""
        return [
            {
                "filter": entry.filter,
                "reason": entry.reason,
                "rows_in": entry.rows_in,
                "rows_out": entry.rows_out,
                "dropped": entry.dropped,
                "examples": list(entry.examples),
            }
            for entry in self.entries
        ]

    def counts(self) -> dict[str, int]:
        """Reason -> rows dropped for it."""
        return {entry.reason: entry.dropped for entry in self.entries if entry.reason}


def _shortened(prompt: str) -> str:
    half = EXAMPLE_CHARACTERS // 2
    return prompt if len(prompt) <= EXAMPLE_CHARACTERS else f"{prompt[:half]} ... {prompt[-half:]}"
