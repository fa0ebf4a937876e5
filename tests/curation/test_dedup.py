from __future__ import annotations

import dataclasses

from posttrain.curation.dedup import (
    CONFLICT,
    DUPLICATE,
    NEAR_DUPLICATE,
    conflicts,
    duplicates,
    jaccard,
    near_duplicates,
)
from tests.curation.builders import CHAIN, LEGS, exact, problem


def near(*prompts: str, answers: tuple[str, ...] | None = None, threshold: float = 0.8) -> list[str | None]:
    answers = answers or ("1",) * len(prompts)
    rows = [problem(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return near_duplicates(rows, threshold=threshold, permutations=128, shingle=3)


def test_jaccard_by_hand() -> None:
    left, right = frozenset({("a",), ("b",), ("c",)}), frozenset({("b",), ("c",), ("d",)})
    assert jaccard(left, right) == 0.5
    assert jaccard(frozenset(), frozenset()) == 0.0


def test_exact_duplicates_differ_in_white_space_at_most() -> None:
    rows = [problem("Add 1 and 2"), problem("Add  1\nand 2"), problem("add 1 and 2")]
    assert duplicates(rows) == [None, DUPLICATE, None]


def test_near_duplicate_is_dropped_and_the_first_stays() -> None:
    story = "Tom has 3 apples in a basket and buys 4 more apples at the market. How many apples does Tom have now?"
    assert near(story, story.replace("?", ""), story.upper()) == [None, NEAR_DUPLICATE, NEAR_DUPLICATE]
    # 22 words give 20 shingles; a word more at the front adds one: 20/21 = 0.952.
    assert near(story, "Question " + story) == [None, NEAR_DUPLICATE]
    assert near(story, "Question " + story, threshold=0.96) == [None, None]


def test_other_numbers_operators_brackets_or_answers_make_another_problem() -> None:
    story = "Tom has 3 apples in a basket and buys 4 more apples at the market. How many apples does Tom have now?"
    assert near(story, story.replace("4", "5")) == [None, None]
    assert near(story, story.replace("now", "left"), answers=("7", "1")) == [None, None]
    assert near("Calculate ( 5 - 3 ) + 6 .", "Calculate 5 - ( 3 + 6 ) .", threshold=0.1) == [None, None]
    assert near("Calculate 5 - 3", "Calculate 5 + 3", threshold=0.1) == [None, None]


def test_templates_do_not_make_duplicates() -> None:
    animals = ["cats", "dogs", "cows", "bees", "ants"]
    prompts = [
        LEGS.format(f"2 {a}, 3 {b}, 1 {c}") for a in animals for b in animals for c in animals if len({a, b, c}) == 3
    ]
    assert len(prompts) == 60
    assert near(*prompts) == [None] * 60
    sums = [CHAIN.format(f"{a} + {b} - {c}") for a in range(1, 6) for b in range(1, 6) for c in range(1, 6)]
    assert near(*sums) == [None] * 125


def test_contradicting_answers_take_all_rows_of_the_prompt() -> None:
    rows = [problem("What is 2 + 2?", "4"), problem("What is 2 + 2?", "5"), problem("What is 2 + 3?", "5")]
    assert conflicts(rows, exact) == [CONFLICT, CONFLICT, None]


def test_an_answer_that_the_verifier_accepts_contradicts_nothing() -> None:
    half = dataclasses.replace(problem("Half of 1?", "1/2"), metadata={"truth": "0.5"})
    assert conflicts([half, problem("Half of 1?", "0.5")], exact) == [None, None]
