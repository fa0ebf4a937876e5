from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.records import RIGHT, WRONG, DataError, Problem
from posttrain.rewards.constraints import CONSTRAINTS, constraint_verdict, holds

TEXT = """<<On Tea>>

Tea is old. Is it older than coffee? Yes, by far!

* a *black* leaf
- a **green** leaf

Dear [name], the state-of-the-art pot (No. 3) costs 4.50 EUR."""

CASES: list[tuple[dict[str, Any], str, bool]] = [
    ({"kind": "words", "at_least": 3}, "one two, three.", True),
    ({"kind": "words", "at_least": 4}, "one two, three.", False),
    ({"kind": "words", "at_most": 3}, "it's state-of-the-art 4.50", True),  # three words
    ({"kind": "words", "at_most": 2}, "it's state-of-the-art 4.50", False),
    ({"kind": "words", "at_least": 3, "at_most": 3}, "un deux - trois", True),
    ({"kind": "sentences", "at_least": 3, "at_most": 3}, "One. Two?! Three", True),
    ({"kind": "sentences", "at_most": 1}, "It costs 4.50 EUR in all.", True),
    ({"kind": "sentences", "at_least": 2}, 'He said "no." She went.', True),
    ({"kind": "sentences", "at_least": 2, "at_most": 2}, "\u597d\u3002\u4e0d\u597d\uff1f", True),
    ({"kind": "paragraphs", "at_least": 2, "at_most": 2}, "a\nb\n \n\nc", True),
    ({"kind": "paragraphs", "at_least": 4, "at_most": 4}, TEXT, True),
    ({"kind": "lines", "at_least": 3, "at_most": 3}, "a\n\nb\nc", True),
    ({"kind": "bullets", "at_least": 2, "at_most": 2}, TEXT, True),
    ({"kind": "bullets", "at_least": 1}, "*emphasis*, -5, a - b", False),
    ({"kind": "highlights", "at_least": 2, "at_most": 2}, TEXT, True),
    ({"kind": "highlights", "at_least": 1}, "* a\n* b", False),
    ({"kind": "placeholders", "at_least": 1, "at_most": 1}, TEXT, True),
    ({"kind": "placeholders", "at_least": 1}, "[] and [", False),
    ({"kind": "sections", "name": "Part", "at_least": 2, "at_most": 2}, "Part 1\na\n## Part 2\nSee Part 3", True),
    ({"kind": "keywords", "words": ["tea", "older than"]}, TEXT, True),
    ({"kind": "keywords", "words": ["tea", "lea"]}, TEXT, False),  # only inside a word
    ({"kind": "forbidden_words", "words": ["lea", "milk"]}, TEXT, True),
    ({"kind": "forbidden_words", "words": ["milk", "COFFEE"]}, TEXT, False),
    ({"kind": "forbidden_words", "words": ["c++"]}, "in C++ or C", False),
    ({"kind": "keyword_count", "word": "leaf", "at_least": 2, "at_most": 2}, TEXT, True),
    ({"kind": "keyword_count", "word": "leaf", "at_least": 3}, TEXT + " leaflet", False),
    ({"kind": "letter_count", "letter": "q", "at_most": 0}, TEXT, True),
    ({"kind": "letter_count", "letter": "e", "at_least": 3, "at_most": 3}, "Eel, e", True),
    ({"kind": "capital_words", "at_least": 1, "at_most": 1}, TEXT, True),  # EUR
    ({"kind": "case", "of": "lower"}, "all small, 1 2 3", True),
    ({"kind": "case", "of": "lower"}, "Not all", False),
    ({"kind": "case", "of": "upper"}, "ALL LARGE!", True),
    ({"kind": "case", "of": "upper"}, "123", False),  # nothing has a case
    ({"kind": "no_commas"}, "none; here", True),
    ({"kind": "no_commas"}, "one, here", False),
    ({"kind": "no_commas"}, "\u4e00\uff0c\u4e8c", False),
    ({"kind": "json"}, '{"a": [1, null]}', True),
    ({"kind": "json"}, '```json\n{"a": 1}\n```', True),
    ({"kind": "json"}, 'Here: {"a": 1}', False),
    ({"kind": "json"}, "[" * 100_000, False),
    ({"kind": "json", "keys": ["a"]}, '{"a": 1, "b": 2}', True),
    ({"kind": "json", "keys": ["a", "c"]}, '{"a": 1, "b": 2}', False),
    ({"kind": "json", "keys": ["a"]}, "[1]", False),
    ({"kind": "starts_with", "phrase": "<<On"}, TEXT, True),
    ({"kind": "starts_with", "phrase": "on"}, "On", False),
    ({"kind": "ends_with", "phrase": "EUR."}, TEXT, True),
    ({"kind": "ends_with", "phrase": "EUR"}, TEXT, False),
    ({"kind": "quoted"}, '"so it is"', True),
    ({"kind": "quoted"}, '"so" it is', False),
    ({"kind": "quoted"}, '"', False),
    ({"kind": "title"}, TEXT, True),
    ({"kind": "title"}, "<< >", False),
    ({"kind": "postscript", "marker": "P.S."}, "Yours\nP.S. call me", True),
    ({"kind": "postscript", "marker": "P.S."}, "Yours P.S. call me", False),
    ({"kind": "postscript", "marker": "P.S."}, "Yours\nP.S.", False),
]  # fmt: skip


def problem(*constraints: object) -> Problem:
    return Problem("p", "Write.", "x", "constraint", "form", "file", metadata={"constraints": list(constraints)})


@pytest.mark.parametrize(("spec", "text", "wanted"), CASES)
def test_constraints(spec: dict[str, Any], text: str, wanted: bool) -> None:
    assert holds(spec, text, where="here") is wanted


def test_every_kind_is_tested_both_ways_and_in_the_docs() -> None:
    assert {spec["kind"] for spec, _, _ in CASES} == set(CONSTRAINTS)
    page = (Path(__file__).parents[2] / "docs/verifiers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page.partition("## Constraints")[2], re.MULTILINE)) == set(CONSTRAINTS)


def test_all_must_hold_and_nothing_obeys_nothing() -> None:
    short, polite = {"kind": "words", "at_most": 3}, {"kind": "keywords", "words": ["please"]}
    assert constraint_verdict(problem(short, polite), " Please come. ") == RIGHT
    assert constraint_verdict(problem(short, polite), "Come.") == WRONG
    assert constraint_verdict(problem(short, polite), "Please come here now.") == WRONG
    assert constraint_verdict(problem(short), "  \n") == WRONG


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "rhyme"}, "constraint 1: field 'kind': got 'rhyme', wanted one of words, "),
        ("words", "constraint 1: field 'kind': got None"),
        ({"kind": "words"}, r"constraint 1 \(words\): field 'at_least': missing; wanted: at_least, at_most or both"),
        ({"kind": "words", "min": 3}, r"constraint 1 \(words\): field 'min': Unexpected keyword argument"),
        ({"kind": "words", "at_least": "3"}, r"constraint 1 \(words\): field 'at_least': .* got '3'"),
        ({"kind": "keywords"}, r"constraint 1 \(keywords\): field 'words': Missing"),
        ({"kind": "keywords", "words": []}, r"constraint 1 \(keywords\): field 'words': got none"),
        ({"kind": "case", "of": "title"}, r"constraint 1 \(case\): field 'of': .* got 'title'"),
        ({"kind": "letter_count", "letter": "ab", "at_least": 1}, "got 'ab', wanted one character"),
        ({"kind": "ends_with", "phrase": " "}, "got ' ', wanted some"),
    ],
)
def test_broken_constraints_are_named(spec: object, message: str) -> None:
    with pytest.raises(DataError, match=f"problem p: .*{message}|problem p: {message}"):
        constraint_verdict(problem(spec), "x")


def test_an_answer_of_any_length_is_judged_in_linear_time() -> None:
    start = time.process_time()
    for text in ("." * 50_000 + "x", "*" * 50_000, "[" * 50_000, "<" * 50_000, "\n" * 50_000 + "x", "a-" * 25_000):
        for spec, _, _ in CASES:
            holds(spec, text, where="here")
    assert time.process_time() - start < 10.0
