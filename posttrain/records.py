"""What crosses stage boundaries: five records and their JSONL reader and writer.

Token ids are the truth: whatever is sampled is trained on as the ids that were sampled, and text beside ids is
there for people and for verifiers. A broken row stops the stage with file, line and field, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

Mode = Literal["think", "no_think"]
Status = Literal["correct", "wrong", "unverified"]
Finish = Literal["stop", "length", "repeat"]
Role = Literal["system", "user", "assistant"]
Verifier = Literal["gym", "exact", "math", "choice", "constraint", "code"]

MODES: tuple[Mode, ...] = get_args(Mode)
VERIFIERS: tuple[Verifier, ...] = get_args(Verifier)


class DataError(ValueError):
    """A data file that cannot be used; the message starts with file:line and names the field."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer."""

    id: str
    prompt: str
    answer: str
    verifier: str
    """One of VERIFIERS; what each wants is in docs/verifiers.md."""
    domain: str
    source: str
    """Where the row came from: `gym:chain_sum`, or the user's file name."""
    pass_rate: float | None = None
    """Share of right answers among the samples of stage `grade`; None before it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the verifier needs beyond the answer (the gym's entry metadata, unit tests); JSON values only."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    thinking: str | None = None
    """Only for the assistant: text between the think tags. None: not a reasoning turn; empty: thinking skipped."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training example of supervised fine-tuning; the last assistant turn is what is trained."""

    id: str
    problem_id: str
    messages: tuple[Message, ...]
    mode: Mode


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response, in token ids."""

    problem_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Sampled tokens, the end-of-turn token included when finish is `stop`."""
    logprobs: tuple[float, ...]
    """Log-probability of each response token under the sampler, at the sampling temperature (nats)."""
    finish: Finish
    version_per_token: tuple[int, ...]
    """Weight version that sampled each token."""


@dataclass(frozen=True, slots=True)
class Verdict:
    score: float
    """1.0 right, 0.0 wrong; graded verifiers may return values between."""
    status: Status
    """`unverified`: the verifier crashed or timed out, which is not a wrong answer."""


WRONG = Verdict(0.0, "wrong")
RIGHT = Verdict(1.0, "correct")
UNVERIFIED = Verdict(0.0, "unverified")


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: `chosen` over `rejected` for one prompt."""

    id: str
    problem_id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float
    """How much better the judge finds `chosen`, in the judge's units; >= 0 unless the label was flipped by noise."""
    judge: str
    prompt_ids: tuple[int, ...] = ()
    chosen_ids: tuple[int, ...] = ()
    rejected_ids: tuple[int, ...] = ()
    """Sampled ids; empty when the pair came as text and has to be tokenised."""
    split: Literal["train", "heldout"] = "train"


Record = TypeVar("Record", Problem, Conversation, Rollout, Verdict, Pair)


class _Adapters:
    """Pydantic adapters, built once per record type on first use."""

    cache: ClassVar[dict[type, TypeAdapter[Any]]] = {}

    @classmethod
    def of(cls, kind: type) -> TypeAdapter[Any]:
        if kind not in cls.cache:
            get_type_hints(kind)
            cls.cache[kind] = TypeAdapter(kind)
        return cls.cache[kind]


def parse_record(kind: type[Record], row: dict[str, Any], where: str) -> Record:
    """One validated record; unknown or missing fields and wrong types raise DataError naming `where` and the field."""
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(row) - known):
        raise DataError(f"{where}: field '{unknown[0]}': unknown; {kind.__name__} has {', '.join(sorted(known))}")
    try:
        return _Adapters.of(kind).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise DataError(f"{where}: field '{name}': got {got}, wanted: {first['msg']}") from error


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) for every line of a JSONL file; a line that is not a JSON object raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: column {error.colno}: not JSON ({error.msg}): {line[:60]!r}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: got a JSON {type(row).__name__}, wanted an object")
            yield where, row


def read_jsonl(path: Path, kind: type[Record]) -> list[Record]:
    """All records of a file, validated; an empty file raises DataError."""
    records = [parse_record(kind, row, where) for where, row in json_rows(path)]
    if not records:
        raise DataError(f"{path}: empty, wanted at least one {kind.__name__}")
    return records


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write records one per line with sorted keys (equal records give equal bytes); returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    return count
