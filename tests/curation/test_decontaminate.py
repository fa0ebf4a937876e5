from __future__ import annotations

from posttrain.curation.decontaminate import CONTAINS, OVERLAP, SAME, contaminated
from posttrain.records import Problem
from tests.curation.builders import CHAIN, LEGS, problem

STORY = "A train leaves the old station with 12 people and picks up 7 more at the next stop before the long bridge."


def check(train: str, *held: str, overlap: float = 0.5) -> str | None:
    return contaminated([problem(train)], [problem(text) for text in held], ngram=8, overlap=overlap)[0]


def test_the_same_words_and_numbers_always_go() -> None:
    assert check("Add 1 and 2.", "Something else", "add  1 and 2") == SAME
    assert check(CHAIN.format("4 + 3 - 2"), CHAIN.format("4 + 3 - 2"), overlap=1.0) == SAME


def test_a_held_out_prompt_inside_a_training_prompt() -> None:
    assert check(f"Here is a puzzle for you. {STORY} Think about it. Then add 5.", STORY) == CONTAINS
    assert check(f"Here is a puzzle for you. {STORY}", STORY, "Here is") == CONTAINS
    # Shorter than an n-gram: inside many prompts by chance.
    assert check("Please tell me: what is 2 + 2? And why?", "What is 2 + 2?") is None


def test_an_expression_or_a_list_that_goes_on_is_another_problem() -> None:
    assert check("Calculate 4 + 3 - 2 + 5 - 6.", "Calculate 4 + 3 - 2 + 5.") is None
    held = LEGS.format("4 crickets, 5 bees, 1 shrimp")
    assert check(LEGS.format("4 crickets, 5 bees, 1 shrimp, 2 cats"), held) is None


def test_overlap_counts_shared_ngrams_of_one_held_out_prompt() -> None:
    # 22 words: 15 n-grams of 8. Another word at place 17 (counted from 1) changes those that start at 10 to 15.
    reworded = STORY.replace("next", "last")
    assert check(reworded, STORY, overlap=9 / 15) == OVERLAP
    assert check(reworded, STORY, overlap=9.1 / 15) is None


def test_other_numbers_are_another_problem() -> None:
    assert check(STORY.replace("7", "8"), STORY, overlap=0.1) is None
    assert check(CHAIN.format("4 + 3 - 5"), CHAIN.format("4 + 3 - 2"), overlap=0.1) is None
    assert check(CHAIN.format("4 + 3 - 2 + 6"), CHAIN.format("4 + 3 - 2"), overlap=0.1) is None


def test_text_of_templates_does_not_count() -> None:
    animals = ["cats", "dogs", "cows", "bees", "ants", "bats"]
    legs = {"cats": 4, "dogs": 4, "cows": 4, "bees": 6, "ants": 6, "bats": 2}

    def row(first: str, second: str) -> Problem:
        return problem(LEGS.format(f"2 {first}, 3 {second}"), str(2 * legs[first] + 3 * legs[second]))

    held = [row(first, second) for first in animals[:3] for second in animals[3:]]
    train = [row(second, first) for first in animals[:3] for second in animals[3:]]
    train += [problem(LEGS.format(f"{i} cats, {i} dogs"), str(8 * i)) for i in range(4, 30)]
    assert contaminated(train, held, ngram=8, overlap=0.5) == [None] * len(train)
    assert contaminated([*train, held[0]], held, ngram=8, overlap=0.5)[-1] == SAME


def test_without_held_out_prompts_nothing_goes() -> None:
    assert check(STORY) is None
