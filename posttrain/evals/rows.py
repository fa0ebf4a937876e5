"""What one model answered to one held-out question: the rows of data/evaluations/<model>.jsonl.

Everything the figures, the paired differences and the side-by-side answers need, and no more: of the texts only the
first sample's is kept. Columns within a mode are parallel: entry i belongs to sample i.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from posttrain.records import DataError, Finish, Mode, json_rows


@dataclass(frozen=True, slots=True)
class ModeSamples:
    """The samples of one question in one mode, as columns of length K."""

    answers: tuple[str | None, ...]
    correct: tuple[bool | None, ...]
    """None: the verifier could not say; such a sample is in no accuracy."""
    tokens: tuple[int, ...]
    """Sampled tokens, end of turn included."""
    thinking_tokens: tuple[int, ...]
    """Tokens between the think tags; of a model without chat habits, all of them."""
    finish: tuple[Finish, ...]
    well_formed: tuple[bool, ...]
    """In the chat format: one closed think block, then the answer. Always false for a model without chat habits."""
    mixed: tuple[bool, ...]
    """Words of more than one script in the thinking (in the answer, where there is no thinking)."""
    text: str
    """The first sample, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class BudgetSample:
    """The first sampled thought of a question, stopped at a budget."""

    tokens: int
    """The budget: thinking tokens allowed."""
    correct: bool | None
    forced: bool
    """The thought was longer than the budget, so that the answer was asked for."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    id: str
    domain: str
    prompt: str
    gold: str
    think: ModeSamples
    no_think: ModeSamples
    follows: tuple[bool, ...]
    """Whether each flagged request (/think, /no_think) was followed; empty for a model without chat habits."""
    budget: tuple[BudgetSample, ...]

    def mode(self, mode: Mode) -> ModeSamples:
        return self.think if mode == "think" else self.no_think


def write_rows(path: Path, rows: Iterable[QuestionRow]) -> None:
    """One row per line, sorted keys: equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[QuestionRow]:
    """All rows of a file; a broken or missing one raises DataError with file, line and field."""
    adapter = TypeAdapter(QuestionRow)
    rows = []
    for where, row in json_rows(path):
        try:
            rows.append(adapter.validate_python(row))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{where}: field '{name}': got {first['input']!r:.80}, wanted: {first['msg']}") from error
    if not rows:
        raise DataError(f"{path}: empty, wanted the answers to at least one question")
    return rows


def same_questions(rows: Sequence[QuestionRow], others: Sequence[QuestionRow]) -> None:
    """Raise DataError unless both hold the same questions in the same order: else no difference is paired."""
    ids, other_ids = [row.id for row in rows], [row.id for row in others]
    if ids != other_ids:
        strange = sorted(set(ids) ^ set(other_ids))
        what = f"{strange[0]!r} is in one of them only" if strange else "the order differs"
        raise DataError(f"evaluations of different questions cannot be paired: {what}")
