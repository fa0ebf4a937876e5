"""Preference pairs that a user has: a JSONL file instead of a judge.

A row is `{"prompt": ..., "chosen": ..., "rejected": ..., "margin": 1.5, "split": "train"}`; the last two are optional,
a margin is given in every row or in none (then it counts as 1). Responses are the assistant's whole turn, think block
included. Everything that is wrong with a row is said with file and line, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import END_OF_TEXT, TURN_END, TURN_START
from posttrain.config_fields import Section
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.pairs import FILE, check_pairs
from posttrain.records import DataError, Pair, json_rows

Split = Literal["train", "heldout"]


class Row(Section):
    prompt: str
    chosen: str
    rejected: str
    margin: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    split: Split | None = None


Placed = tuple[str, Row]
"""A row and where it stands, file:line."""


def read_pair_file(
    path: Path, tokenizer: PreTrainedTokenizerFast, *, max_tokens: int, heldout_share: float, seed: int
) -> list[Pair]:
    """The pairs in the order of the file, in text and in `tokenizer`'s ids.

    A prompt without a split is drawn into the held-out one with probability `heldout_share`. `max_tokens`: of prompt
    and response together, what the model can read. Raises DataError.
    """
    rows = [(where, _row(values, where)) for where, values in json_rows(path)]
    if not rows:
        raise DataError(f"{path}: empty, wanted at least two rows with 'prompt', 'chosen' and 'rejected'")
    without = [where for where, row in rows if row.margin is None]
    if without and len(without) < len(rows):
        raise DataError(f"{without[0]}: field 'margin': missing; wanted: in every row or in none")
    splits = _splits(rows, heldout_share=heldout_share, seed=seed)
    pairs: list[Pair] = []
    numbers: Counter[str] = Counter()
    for where, row in rows:
        problem_id = f"{path.stem}-{hashlib.sha256(row.prompt.encode()).hexdigest()[:16]}"
        pair = Pair(
            id=f"{problem_id}-{numbers[problem_id]}",
            problem_id=problem_id,
            prompt=row.prompt,
            chosen=row.chosen.removesuffix(TURN_END) + TURN_END,
            rejected=row.rejected.removesuffix(TURN_END) + TURN_END,
            margin=1.0 if row.margin is None else row.margin,
            judge=FILE,
            split=splits[row.prompt],
        )
        numbers[problem_id] += 1
        pairs.append(_with_ids(pair, tokenizer, where, max_tokens=max_tokens))
    check_pairs(pairs, str(path))
    return pairs


def _row(values: dict[str, Any], where: str) -> Row:
    try:
        row = Row.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise DataError(f"{where}: field '{name}': got {got}, wanted: {first['msg']}") from error
    for name in ("prompt", "chosen", "rejected"):
        text = getattr(row, name).removesuffix(TURN_END)
        for token in (TURN_START, TURN_END, END_OF_TEXT):
            if token in text:
                raise DataError(f"{where}: field '{name}': got '{token}' inside the text, wanted plain text")
    return row


def _splits(rows: Sequence[Placed], *, heldout_share: float, seed: int) -> dict[str, Split]:
    """Split of every prompt: the one that its rows name, or drawn; two different ones raise DataError."""
    named: dict[str, tuple[Split, str]] = {}
    for where, row in rows:
        if row.split is not None:
            split, there = named.setdefault(row.prompt, (row.split, where))
            if split != row.split:
                raise DataError(
                    f"{where}: field 'split': got '{row.split}', and {there} has the same prompt in '{split}'; "
                    "wanted: each prompt in one split"
                )
    rng = random.Random(seed)
    splits: dict[str, Split] = {}
    for _, row in rows:
        if row.prompt not in splits:
            drawn: Split = "heldout" if rng.random() < heldout_share else "train"
            splits[row.prompt] = named[row.prompt][0] if row.prompt in named else drawn
    return splits


def _with_ids(pair: Pair, tokenizer: PreTrainedTokenizerFast, where: str, *, max_tokens: int) -> Pair:
    (prompt_ids, chosen_ids), (_, rejected_ids) = pair_ids(tokenizer, pair)
    for name, ids in (("chosen", chosen_ids), ("rejected", rejected_ids)):
        if len(prompt_ids) + len(ids) > max_tokens:
            raise DataError(
                f"{where}: field '{name}': got {len(prompt_ids) + len(ids)} tokens with the prompt, wanted at most "
                f"{max_tokens}: it would be cut off"
            )
    return dataclasses.replace(pair, prompt_ids=prompt_ids, chosen_ids=chosen_ids, rejected_ids=rejected_ids)
