from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import reasoning_gym

from posttrain.curation import decontaminate, dedup, filters
from posttrain.curation.droptable import DropTable
from posttrain.curation.normalise import one_line
from posttrain.curation.pipeline import HELD_OUT, curate
from posttrain.curation.sources import load_sources
from posttrain.records import DataError, Problem, Verdict
from tests.curation.builders import CHAIN, exact, gym_source, problem

SETTINGS: dict[str, Any] = {
    "heldout": 5,
    "seed": 0,
    "dedup_threshold": 0.8,
    "dedup_permutations": 128,
    "shingle_words": 3,
    "ngram": 8,
    "ngram_overlap": 0.5,
    "verify": exact,
    "guess": None,
}
CLEAN = [
    problem(CHAIN.format(f"{a} + {b} - {c}"), str(a + b - c)) for a in range(1, 6) for b in range(1, 5) for c in (1, 2)
]
STORY = "Tom has 3 apples in a basket and buys 4 more apples at the market. How many apples does Tom have now?"
EVALUATION = [
    problem("Ann keeps 12 hens and 5 geese on her small farm near the river. How many birds are there?", "17")
]


def wrong_guesses(problems: Sequence[Problem]) -> Mapping[str, Sequence[str | None]]:
    return {row.id: ["right" if "guess me" in row.prompt else "no idea", None] for row in problems}


BAD = {
    filters.EMPTY_PROMPT: [problem(" \u200b\n")],
    filters.EMPTY_ANSWER: [problem("Name a number.", " ")],
    filters.MULTIPLE_CHOICE: [problem("What is 2 + 2?\nA) 3\nB) 4", "B")],
    filters.TRUE_FALSE: [problem("Is 7 a prime number?", "True")],
    filters.PROOF: [problem("Prove that 7 is a prime number.", "by division")],
    filters.GOLD_WRONG: [
        Problem("wrong", "What is 9 + 9?", "19", "exact", "arithmetic", "mine.jsonl", metadata={"truth": "18"})
    ],
    filters.GOLD_UNVERIFIED: [problem("What is 9 + 10?", "crash")],
    dedup.CONFLICT: [problem("What is 8 + 8?", "16"), problem("What is  8 + 8?", "15")],
    dedup.DUPLICATE: [problem(CLEAN[0].prompt.replace(" ", "  "), CLEAN[0].answer)],
    dedup.NEAR_DUPLICATE: [problem(STORY, "7"), problem("Well: " + STORY, "7")],
    decontaminate.SAME: [problem(EVALUATION[0].prompt.upper(), "17")],
    decontaminate.CONTAINS: [problem("Listen to this. " + EVALUATION[0].prompt + " Say it aloud.", "17")],
    decontaminate.OVERLAP: [problem(EVALUATION[0].prompt.replace("Ann", "Eve"), "17")],
    filters.GUESSABLE: [problem("Please guess me: what is 90 + 1?", "right")],
}


@pytest.mark.parametrize("reason", BAD)
def test_each_kind_of_bad_row_goes_for_its_own_reason(reason: str) -> None:
    settings = SETTINGS | {"evaluation": EVALUATION, "guess": wrong_guesses, "heldout": 1}
    train, held, table = curate([*CLEAN, *BAD[reason]], **settings)
    # The held-out row is drawn by seed; none of the bad rows is it, which the count shows.
    expected = 2 if reason == dedup.CONFLICT else 1
    assert table.counts() == {reason: expected, HELD_OUT: 1}
    assert len(train) + len(held) == len(CLEAN) + len(BAD[reason]) - expected


def test_all_kinds_at_once_leave_the_clean_rows() -> None:
    everything = [*CLEAN, *(row for rows in BAD.values() for row in rows)]
    train, held, table = curate(everything, **SETTINGS | {"evaluation": EVALUATION, "guess": wrong_guesses})
    left = {one_line(row.prompt) for row in [*train, *held]}
    assert {row.prompt for row in CLEAN} <= left
    assert {len([text for text in left - {row.prompt for row in CLEAN} if text.endswith(STORY)])} == {1}
    assert len({row.id for row in [*train, *held]}) == len(train) + len(held)
    assert len(held) == 5
    rows = table.to_json()
    assert json.loads(json.dumps(rows)) == rows
    names = [row["filter"] for row in rows]
    assert list(dict.fromkeys(names)) == [
        "empty",
        "question_type",
        "gold_answer",
        "conflict",
        "duplicate",
        "near_duplicate",
        "held_out",
        "contaminated",
        "guessable",
    ]
    assert rows[0]["rows_in"] == len(everything)
    assert rows[-1]["rows_out"] == len(train)
    for name in names:
        own = [row for row in rows if row["filter"] == name]
        assert own[0]["rows_in"] - sum(row["dropped"] for row in own) == own[0]["rows_out"]


def test_the_order_of_the_input_does_not_matter_and_the_seed_does() -> None:
    everything = [*CLEAN, *(row for reason, rows in BAD.items() if reason != filters.GUESSABLE for row in rows)]
    wanted = curate(everything, **SETTINGS)
    for seed in range(3):
        mixed = random.Random(seed).sample(everything, len(everything))
        assert curate(mixed, **SETTINGS) == wanted
    other = curate(everything, **SETTINGS | {"seed": 1})
    assert {row.id for row in other[1]} != {row.id for row in wanted[1]}


def test_the_guess_filter_sees_training_only() -> None:
    asked: list[str] = []

    def all_right(problems: Sequence[Problem]) -> Mapping[str, Sequence[str | None]]:
        asked.extend(row.id for row in problems)
        return {row.id: [row.answer] for row in problems}

    train, held, _ = curate(CLEAN, **SETTINGS | {"guess": all_right})
    assert train == []
    assert len(held) == 5
    assert set(asked) == {row.id for row in CLEAN} - {row.id for row in held}


def test_held_out_is_stratified_by_source() -> None:
    rows = [problem(f"What is {i} + 1?", source="a") for i in range(60)]
    rows += [problem(f"What is {i} + 2?", source="b") for i in range(40)]
    _, held, _ = curate(rows, **SETTINGS | {"heldout": 10})
    assert Counter(row.source for row in held) == {"a": 6, "b": 4}


def test_what_the_base_has_read_is_trained_on_and_not_held_out() -> None:
    read = {row.prompt + "\n" for row in CLEAN[:34]}
    train, held, _ = curate(CLEAN, **SETTINGS | {"pretraining": read})
    assert len(held) == 5
    assert {row.prompt for row in held} < {row.prompt for row in CLEAN[34:]}
    assert len(train) == 35
    with pytest.raises(DataError, match="got 6, wanted: fewer than the 6 problems"):
        curate(CLEAN, **SETTINGS | {"pretraining": read, "heldout": 6})


def test_more_held_out_than_there_is() -> None:
    with pytest.raises(DataError, match=r"curate\.heldout: got 40, wanted: fewer than the 40 problems left"):
        curate(CLEAN, **SETTINGS | {"heldout": 40})


def test_drop_table_keeps_three_examples_and_both_ends_of_a_long_prompt() -> None:
    table = DropTable()
    rows = [problem(f"{i} " + "x" * 400 + " end") for i in range(5)]
    assert table.apply("length", rows, ["long", "long", None, "long", "long"]) == [rows[2]]
    (entry,) = table.to_json()
    assert (entry["rows_in"], entry["rows_out"], entry["dropped"], len(entry["examples"])) == (5, 1, 4, 3)
    assert entry["examples"][0].startswith("0 xx")
    assert entry["examples"][0].endswith(" end")
    assert len(entry["examples"][0]) < 320


def gym_verdict(row: Problem, answer: str | None) -> Verdict:
    entry = {"question": row.prompt, "answer": row.answer, "metadata": row.metadata}
    score = reasoning_gym.get_score_answer_fn(row.metadata["family"])(answer, entry)
    return Verdict(score, "correct" if score >= 1.0 else "wrong")


def test_five_thousand_templated_rows_lose_only_true_duplicates_within_ten_seconds() -> None:
    source = gym_source(
        5000,
        ("chain_sum", 0.4, {"min_terms": 2, "max_terms": 6, "max_digits": 1}),
        ("basic_arithmetic", 0.25, {"max_terms": 5, "max_digits": 1, "operators": ("+", "-", "*")}),
        ("leg_counting", 0.2, {"min_animals": 2, "max_animals": 4, "max_instances": 5}),
        ("syllogism", 0.05, {}),
        ("gcd", 0.1, {"max_value": 30}),
    )
    rows = load_sources([source], seed=0)
    start = time.process_time()
    train, held, table = curate(rows, **SETTINGS | {"heldout": 300, "verify": gym_verdict})
    assert time.process_time() - start < 10

    free = [row for row in rows if row.source != "gym:syllogism"]
    different = {one_line(row.prompt) for row in free}
    counts = table.counts()
    assert counts[filters.TRUE_FALSE] == 250
    assert counts[dedup.DUPLICATE] == len(free) - len(different) > 0
    assert dedup.NEAR_DUPLICATE not in counts
    # Two lists of animals in the same words but for one with as many legs may still overlap.
    leaks = sum(counts.get(reason, 0) for reason in (decontaminate.SAME, decontaminate.CONTAINS, decontaminate.OVERLAP))
    assert leaks <= 3
    lost = different - {one_line(row.prompt) for row in [*train, *held]}
    assert {row.source for row in free if one_line(row.prompt) in lost} <= {"gym:leg_counting"}
