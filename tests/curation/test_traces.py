"""Traces: right where they must be, wrong where a habit slips, and the same for the same seed."""

import random
import re
from collections import Counter

import pytest

from posttrain.config import Habits
from posttrain.curation.corpus import document, write_corpus
from posttrain.curation.traces import CHINESE, ENGLISH, MOST_REMARKS, write_trace
from posttrain.records import Problem

PROBLEM = Problem(
    "p1",
    "What is 4 - 1 - 7 + 7 + 5 =",
    "8",
    "gym",
    "d",
    "s",
    None,
    {"family": "chain_sum", "expression": "4 - 1 - 7 + 7 + 5"},
)


def habits(**changes: float) -> Habits:
    values = {
        "careful": 1.0,
        "hasty": 0.0,
        "direct": 0.0,
        "guess": 0.0,
        "slip": 0.0,
        "check": 0.0,
        "mistake": 0.0,
        "detour": 0.0,
        "remarks": 0.0,
    }
    return Habits.model_validate({**values, "second_script": 0.0, **changes})


def test_a_careful_trace_by_hand() -> None:
    trace = write_trace(PROBLEM, habits(), random.Random(0))
    assert trace.working == "Step by step: 4-1=3, then 3-7=-4, then -4+7=3, then 3+5=8. So the answer is 8."
    assert trace.answer == "8"


def test_a_hasty_trace_leaps_and_is_right_without_slips() -> None:
    for seed in range(50):
        trace = write_trace(PROBLEM, habits(careful=0.0, hasty=1.0), random.Random(seed))
        assert trace.answer == "8"
        assert trace.working.count("=") < 4


def test_a_slip_goes_on_from_the_wrong_value() -> None:
    trace = write_trace(PROBLEM, habits(careful=0.0, hasty=1.0, slip=1.0), random.Random(3))
    values = [int(v) for v in re.findall(r"=(-?\d+)", trace.working)]
    assert trace.answer == str(values[-1])
    wrong = sum(
        write_trace(PROBLEM, habits(careful=0.0, hasty=1.0, slip=1.0), random.Random(seed)).answer != "8"
        for seed in range(100)
    )
    assert wrong > 80  # two slips may cancel


def test_the_mix_has_the_shares_asked_for() -> None:
    mix = habits(careful=0.3, hasty=0.4, direct=0.2, guess=0.1)
    rng = random.Random(0)
    counts = Counter(write_trace(PROBLEM, mix, rng).habit for _ in range(4000))
    for name, share in (("careful", 0.3), ("hasty", 0.4), ("direct", 0.2), ("guess", 0.1)):
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)


def test_a_guess_is_wrong_and_unworked() -> None:
    trace = write_trace(PROBLEM, habits(careful=0.0, guess=1.0), random.Random(0))
    assert trace.working == "" and trace.answer != "8"


def test_second_script_mixes_words_and_keeps_numbers() -> None:
    plain = write_trace(PROBLEM, habits(), random.Random(1)).working
    mixed = write_trace(PROBLEM, habits(second_script=1.0), random.Random(1)).working
    assert re.findall(r"[-+\d=]+", plain) == re.findall(r"[-+\d=]+", mixed)
    assert any(word in mixed for word in (CHINESE.then, CHINESE.careful, CHINESE.so))
    assert not any(word in plain for word in (CHINESE.then, CHINESE.careful, CHINESE.so))
    assert ENGLISH.then in plain


def test_a_check_that_agrees_by_hand() -> None:
    trace = write_trace(PROBLEM, habits(check=1.0), random.Random(2))
    once = "4-1=3, then 3-7=-4, then -4+7=3, then 3+5=8."
    assert trace.working == f"Step by step: {once} Check again: {once} Same. So the answer is 8."


def test_a_check_that_finds_a_mistake_is_settled_by_a_third_time() -> None:
    for habit in ({"careful": 1.0}, {"careful": 0.0, "hasty": 1.0}):
        trace = write_trace(PROBLEM, habits(check=1.0, mistake=1.0, **habit), random.Random(2))
        first, check, third = re.split("Check again:|Different. Step by step:", trace.working)
        wrong, right = re.findall(r"=(-?\d+)\.", first)[-1], re.findall(r"=(-?\d+)\.", check)[-1]
        assert wrong != "8" and right == "8"
        assert third == " 4-1=3, then 3-7=-4, then -4+7=3, then 3+5=8. So the answer is 8."
        assert trace.answer == "8"


def test_a_detour_lengthens_without_changing_the_answer() -> None:
    trace = write_trace(PROBLEM, habits(detour=1.0), random.Random(2))
    assert re.match(r"Step by step: maybe \d\+\d=\d+, no, start over\. 4-1=3, then", trace.working)
    assert trace.answer == "8"


def test_remarks_stand_behind_the_answer_and_change_nothing() -> None:
    counts = set()
    for seed in range(200):
        plain, long = (write_trace(PROBLEM, habits(remarks=share), random.Random(seed)) for share in (0.0, 1.0))
        assert long.working.startswith(plain.working) and long.answer == plain.answer
        counts.add(long.working.removeprefix(plain.working).count("."))
    assert counts == set(range(1, MOST_REMARKS + 1))


def test_documents_have_two_kinds_and_no_chat_markup() -> None:
    rng = random.Random(0)
    worked = document(PROBLEM, write_trace(PROBLEM, habits(), rng))
    bare = document(PROBLEM, write_trace(PROBLEM, habits(careful=0.0, direct=1.0), rng))
    assert worked.startswith("Question: What is 4 - 1 - 7 + 7 + 5 =\nSolution:\nStep by step:")
    assert worked.endswith(r"\boxed{8}")
    assert bare == "Question: What is 4 - 1 - 7 + 7 + 5 =\nAnswer: \\boxed{8}"


def test_a_corpus_is_the_same_for_the_same_seed() -> None:
    first = write_corpus([PROBLEM] * 3, habits(), documents=7, drill_share=0.0, seed=1)
    assert first == write_corpus([PROBLEM] * 3, habits(), documents=7, drill_share=0.0, seed=1)
    assert len(first) == 7


def test_drills_are_true_operations() -> None:
    texts = write_corpus([PROBLEM], habits(), documents=10, drill_share=0.5, seed=1)
    drills = [text for text in texts if text.startswith("Practice: ")]
    assert len(drills) == 5
    for operation in drills[0].removeprefix("Practice: ").split(", "):
        left, _, right = operation.rpartition("=")
        assert operation in ("4-1=3", "3-7=-4", "-4+7=3", "3+5=8") and left and right
