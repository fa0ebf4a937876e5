from __future__ import annotations

import dataclasses
import itertools

import pytest

from posttrain.curation.filters import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    GOLD_UNVERIFIED,
    GOLD_WRONG,
    GUESSABLE,
    MULTIPLE_CHOICE,
    PROOF,
    TRUE_FALSE,
    empty,
    gold_answers,
    guessable,
    question_type,
    question_types,
)
from posttrain.curation.tags import OTHER, domain_of
from posttrain.records import DataError, Problem
from tests.curation.builders import exact, problem


def test_empty_prompts_and_answers() -> None:
    assert empty([problem(" \n"), problem("Why?", ""), problem("Why?")]) == [EMPTY_PROMPT, EMPTY_ANSWER, None]


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [
        ("What is 2 + 2?\nA) 3\nB) 4\nC) 5", "B", MULTIPLE_CHOICE),
        ("What is 2 + 2? (A) 3 (B) 4", "(B)", MULTIPLE_CHOICE),
        ("What is 2 + 2?\nA. 3\nB. 4", "B. 4", MULTIPLE_CHOICE),
        ("What is 2 + 2?\nA. 3\nB. 4", "4", MULTIPLE_CHOICE),
        ("Which of the following is prime: 4, 7, 9?", "7", MULTIPLE_CHOICE),
        ("Choose the correct answer: 4 or 7?", "7", MULTIPLE_CHOICE),
        ("Vitamin A is found in what? Vitamin B is not.", "carrots", None),
        ("a) Find x. b) Find y.", "x=1, y=2", None),
        ("Return True if the strings are isomorphic, or False otherwise: ab cd", "True", TRUE_FALSE),
        ("Does it follow? (Answer Yes or No)", "no.", TRUE_FALSE),
        ("Is it yes? How many?", "3", None),
        ("Prove that 2 is even.", "2 = 2 * 1", PROOF),
        ("Let n be odd. Show that n^2 is odd.", "n = 2k + 1 ...", PROOF),
        ("Let n be odd, then prove n + 1 is even", "k", PROOF),
        ("Give a short proof of the claim.", "It is obvious.", PROOF),
        ("To prove that she is strong, Ann lifts 3 stones of 4 kg. How many kg?", "12", None),
        ("The records show that 5 people came and 2 left. How many stayed?", "3", None),
        ("The house is 80 proof against wind. How old is it?", "9", None),
        ("State the final answer to the following arithmetic problem: 4 + 3 - 2 =", "5", None),
        ("Find the Greatest Common Divisor (GCD) of these numbers: 780, 461.", "1", None),
    ],
)
def test_question_type(prompt: str, answer: str, wanted: str | None) -> None:
    assert question_type(prompt, answer) == wanted


def test_multiple_choice_stays_where_the_row_names_its_verifier() -> None:
    asked = Problem("c", "What is 2 + 2? (A) 3 (B) 4", "B", "exact", "arithmetic", "mine")
    assert question_types([asked, dataclasses.replace(asked, verifier="choice")]) == [MULTIPLE_CHOICE, None]


def test_gold_answer_must_pass_its_own_verifier() -> None:
    wrong = Problem("w", "2 + 2", "5", "exact", "arithmetic", "mine", metadata={"truth": "4"})
    assert gold_answers([problem("2 + 2", "4"), wrong, problem("?", "crash")], exact) == [
        None,
        GOLD_WRONG,
        GOLD_UNVERIFIED,
    ]


@pytest.mark.parametrize(("p", "wanted"), [(0.1, 0.5695), (0.02, 0.1492)])
def test_best_of_eight_drops_with_the_binomial_probability(p: float, wanted: float) -> None:
    """Algorithms 9.1: all 2^8 patterns of right and wrong guesses, weighted by their probability."""
    patterns = list(itertools.product((True, False), repeat=8))
    rows = [problem(f"question {i}", "7") for i in range(len(patterns))]
    guesses = {
        row.id: ["7" if right else "8" for right in pattern] for row, pattern in zip(rows, patterns, strict=True)
    }
    reasons = guessable(rows, guesses, exact)
    weights = [p ** sum(pattern) * (1 - p) ** (8 - sum(pattern)) for pattern in patterns]
    dropped = sum(weight for weight, reason in zip(weights, reasons, strict=True) if reason == GUESSABLE)
    assert sum(weights) == pytest.approx(1.0)
    assert dropped == pytest.approx(wanted, abs=5e-5)


def test_no_answer_and_a_crashed_verifier_are_no_right_guess() -> None:
    row = problem("2 + 2", "4")
    assert guessable([row], {row.id: [None, "crash", "5"]}, exact) == [None]


def test_a_problem_without_guesses_does_not_pass_unexamined() -> None:
    rows = [problem("2 + 2", own_id="a"), problem("2 + 3", own_id="b"), problem("2 + 4", own_id="c")]
    with pytest.raises(DataError, match="'b': missing for 2 problems"):
        guessable(rows, {"a": ["1"], "b": []}, exact)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("What is 4 + 3?", "arithmetic"),
        ("Solve for x: 2x + 3 = 7", "algebra"),
        ("What is the probability of two sixes with 2 dice?", "probability"),
        ("The area of a circle with radius 2?", "geometry"),
        ("How many primes are below 20?", "number_theory"),
        ("Who wrote it?", OTHER),
    ],
)
def test_domain_by_keyword(prompt: str, wanted: str) -> None:
    assert domain_of(prompt) == wanted
