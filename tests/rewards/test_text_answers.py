from __future__ import annotations

import pytest

from posttrain.records import RIGHT, WRONG, DataError, Problem, Verdict
from posttrain.rewards.text_answers import choice_verdict, chosen, exact_verdict

FRUIT = ["an apple", "a pear", "A plum."]


def problem(answer: str, **metadata: object) -> Problem:
    return Problem("p", "question", answer, "choice", "domain", "file", metadata=metadata)


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [("a b", " a\n b ", RIGHT), ("7", "7", RIGHT), ("7", "8", WRONG), ("7", "", WRONG), ("Yes", "yes", WRONG)],
)
def test_exact(gold: str, answer: str, verdict: Verdict) -> None:
    assert exact_verdict(problem(gold), answer) == verdict


@pytest.mark.parametrize("text", ["B", "b", "(B)", "B.", "B)", "[b]", "$B$", "\\text{B}", "\\textbf{(B)}", "B. a pear"])
def test_one_label_in_all_its_forms(text: str) -> None:
    assert chosen(text, []) == {"B"}
    assert chosen(text, FRUIT) == {"B"}


@pytest.mark.parametrize("text", ["", "  ", "BC", "B or C", "I think B", "2", "pear", "\u0411"])
def test_what_is_no_label(text: str) -> None:
    assert chosen(text, []) == frozenset()


def test_options_by_their_text() -> None:
    assert chosen("A  pear", FRUIT) == {"B"}
    assert chosen("a plum", FRUIT) == {"C"}
    assert chosen("an apple.", FRUIT) == {"A"}
    assert chosen("D", FRUIT) == frozenset()  # no such option
    assert chosen("A. a pear", FRUIT) == frozenset()  # names two
    assert chosen("A. what I like", FRUIT) == {"A"}
    assert chosen("b", ["c", "a", "b"]) == {"C"}  # an option's own text comes first
    assert chosen("same", ["same", "same"]) == frozenset()


@pytest.mark.parametrize("text", ["A, C", "c,a", "(A) and (C)", "A; C", "C & A"])
def test_several_labels_in_any_order(text: str) -> None:
    assert chosen(text, []) == {"A", "C"}
    assert choice_verdict(problem("A, C"), text) == RIGHT
    assert choice_verdict(problem("A"), text) == WRONG
    assert choice_verdict(problem("A, B, C"), text) == WRONG


def test_choice() -> None:
    assert choice_verdict(problem("B"), "(b)") == RIGHT
    assert choice_verdict(problem("a pear", choices=FRUIT), "B") == RIGHT
    assert choice_verdict(problem("B", choices=FRUIT), "a pear") == RIGHT
    assert choice_verdict(problem("B"), "C") == WRONG
    assert choice_verdict(problem("B"), "none") == WRONG


def test_broken_problems_are_named() -> None:
    with pytest.raises(DataError, match="problem p: field 'answer': got 'a grape', wanted: a label"):
        choice_verdict(problem("a grape", choices=FRUIT), "A")
    with pytest.raises(DataError, match=r"problem p: field 'metadata.choices': got 'A B', wanted: a list of texts"):
        choice_verdict(problem("A", choices="A B"), "A")
