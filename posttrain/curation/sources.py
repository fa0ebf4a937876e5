"""Where problems come from: one function per kind of source, chosen once by SOURCES.

Ids come from the content (or from the user's own id field), never from the position, so that a row keeps its id when
others are added, removed or reordered. Rows that repeat share an id until deduplication leaves one of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import reasoning_gym

from posttrain.config import ConfigError, Fields, GymFamily, GymSource, HubSource, JsonlSource, Source
from posttrain.curation.tags import domain_of
from posttrain.records import VERIFIERS, DataError, Problem, Verifier, json_rows

HASH_ORDERED = frozenset(
    {"isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Families of reasoning-gym 0.1.25 that draw from Python sets: their rows change from process to process while string
hashing is randomised (found by comparing all families under two values of PYTHONHASHSEED)."""


def load_sources(sources: Sequence[Source], *, seed: int) -> list[Problem]:
    """All rows of all sources; two different problems under one id raise DataError."""
    problems = [problem for source in sources for problem in SOURCES[source.kind](source, seed)]
    first: dict[str, Problem] = {}
    for problem in problems:
        other = first.setdefault(problem.id, problem)
        if (other.prompt, other.answer, other.source) != (problem.prompt, problem.answer, problem.source):
            raise DataError(
                f"{problem.source}: field 'id': '{problem.id}' also names another problem, of {other.source}; "
                "wanted: one id per problem"
            )
    return problems


def gym(source: GymSource, seed: int) -> list[Problem]:
    """Rows of reasoning-gym families in the proportion of their weights, worded as the library words them."""
    counts = shares([family.weight for family in source.families], source.problems)
    return [
        problem
        for family, count in zip(source.families, counts, strict=True)
        if count
        for problem in _gym_family(family, count, seed)
    ]


def _gym_family(family: GymFamily, count: int, seed: int) -> Iterator[Problem]:
    if family.name in HASH_ORDERED and sys.flags.hash_randomization:
        raise ConfigError(
            f"curate.sources: gym family '{family.name}': its rows depend on Python's string hashing, which is random "
            "here; wanted: PYTHONHASHSEED=0 in the environment, or another family"
        )
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in family.options.items()}
    # A seed per family and difficulty: adding one family changes no row of another. The gym seeds row i with seed + i.
    own_seed = int(_digest(str(seed), family.name, json.dumps(options, sort_keys=True))[:7], 16)
    try:
        dataset = reasoning_gym.create_dataset(family.name, size=count, seed=own_seed, **options)
    except (ValueError, TypeError, AssertionError) as error:
        wanted = "a family of reasoning-gym and options it knows"
        raise ConfigError(
            f"curate.sources: gym family '{family.name}' with {options}: {error}; wanted: {wanted}"
        ) from error
    for index in range(count):
        entry = dataset[index]
        # Some families have no single gold answer (None); an empty one is dropped, and counted, by the first filter.
        prompt, answer = entry["question"], entry["answer"] or ""
        yield Problem(
            id=f"{family.name}-{_digest(prompt, answer)}",
            prompt=prompt,
            answer=answer,
            verifier="gym",
            domain=dataset.category,
            source=f"gym:{family.name}",
            metadata=_gym_metadata(entry["metadata"], family.name),
        )


def _gym_metadata(metadata: dict[str, Any], family: str) -> dict[str, Any]:
    """The entry's metadata with its family, as it reads after a round trip through JSONL: all stages see the same.

    Steps that the gym writes itself (gsm_symbolic) become the worked solution of the row.
    Tuples become lists and what JSON has no word for becomes text (Fraction in gsm_symbolic); a verifier that cannot
    work with that fails on the gold answer, and the row is dropped for it.
    """
    values: dict[str, Any] = json.loads(json.dumps({"family": family, **metadata}, default=str))
    return {**values, "solution": values["answer_cot"]} if "answer_cot" in values else values


def jsonl(source: JsonlSource, seed: int) -> list[Problem]:
    """Rows of a user's JSONL file; a broken one raises DataError with file:line and field."""
    path = Path(source.path)
    return _user_rows(json_rows(path), name=path.name, fields=source.fields, verifier=source.verifier)


def hub(source: HubSource, seed: int) -> list[Problem]:
    """Rows of a Hugging Face data set (from the hub, or from its local cache when offline)."""
    # Imported here: it costs seconds, which the other sources need not pay.
    import datasets

    name = "/".join(part for part in (source.dataset, source.subset, source.split) if part)
    try:
        rows = datasets.load_dataset(source.dataset, source.subset, split=source.split)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise DataError(f"{name}: cannot be loaded: {error}") from error
    numbered = ((f"{name}:{number}", row) for number, row in enumerate(rows, start=1))
    return _user_rows(numbered, name=name, fields=source.fields, verifier=source.verifier)


SOURCES: dict[str, Callable[[Any, int], list[Problem]]] = {"gym": gym, "jsonl": jsonl, "hub": hub}


def _user_rows(
    rows: Iterable[tuple[str, dict[str, Any]]], *, name: str, fields: Fields, verifier: Verifier
) -> list[Problem]:
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for where, row in rows:
        prompt = _text(row, fields.prompt, where)
        answer = _text(row, fields.answer, where, number_too=True)
        own_id = _text(row, fields.id, where, number_too=True) if fields.id else _digest(prompt, answer)
        if fields.id and own_id in places:
            raise DataError(
                f"{where}: field '{fields.id}': got '{own_id}', which {places[own_id]} has; wanted: its own"
            )
        places[own_id] = where
        problems.append(
            Problem(
                id=f"{Path(name).stem}-{own_id}",
                prompt=prompt,
                answer=answer,
                verifier=_verifier(row, fields.verifier, where) or verifier,
                domain=_text(row, fields.domain, where) if fields.domain else domain_of(prompt),
                source=name,
                metadata=_metadata(row, fields, where),
            )
        )
    if not problems:
        raise DataError(f"{name}: empty, wanted at least one row with field '{fields.prompt}'")
    return problems


def _verifier(row: dict[str, Any], field: str | None, where: str) -> str | None:
    """The row's own verifier; None where it names none (absent or null)."""
    name = row.get(field) if field else None
    if name is None or name in VERIFIERS:
        return name
    raise DataError(f"{where}: field '{field}': got {name!r:.80}, wanted one of {', '.join(VERIFIERS)}")


def _metadata(row: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
    """What the verifier needs, and the worked solution."""
    values = row.get(fields.metadata) if fields.metadata else None
    if values is not None and not isinstance(values, dict):
        raise DataError(f"{where}: field '{fields.metadata}': got {values!r:.80}, wanted: an object")
    solution = {"solution": _text(row, fields.solution, where)} if fields.solution else {}
    return {**(values or {}), **solution}


def _text(row: dict[str, Any], field: str, where: str, *, number_too: bool = False) -> str:
    wanted = "text or a number" if number_too else "text"
    if field not in row:
        raise DataError(f"{where}: field '{field}': missing; wanted: {wanted}; the row has {', '.join(sorted(row))}")
    value = row[field]
    if isinstance(value, str):
        return value
    # bool is an int in Python, and `true` is not a number to anybody else.
    if number_too and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: field '{field}': got {value!r:.80}, wanted: {wanted}")


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in proportion to the weights, rounded by largest remainder (ties: the earlier one)."""
    exact = [weight * total / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _digest(*parts: str) -> str:
    """16 hex digits of the parts' content."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
