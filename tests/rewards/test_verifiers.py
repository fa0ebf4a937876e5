import dataclasses
import inspect
import re
import time

import pytest
import reasoning_gym

from posttrain.records import DataError, Problem, Verdict
from posttrain.rewards import verifiers
from posttrain.rewards.math_judge import JudgeDied, MathJudge
from posttrain.rewards.verifiers import verify

CORRECT, WRONG, UNVERIFIED = Verdict(1.0, "correct"), Verdict(0.0, "wrong"), Verdict(0.0, "unverified")


def problem(answer: str, verifier: str) -> Problem:
    return Problem("p", "question", answer, verifier, "domain", "file")


def gym_problem(family: str) -> Problem:
    entry = reasoning_gym.create_dataset(family, size=1, seed=3)[0]
    return Problem(
        "p", entry["question"], entry["answer"], "gym", "domain", f"gym:{family}", metadata=entry["metadata"]
    )


@pytest.mark.parametrize("family", ["chain_sum", "leg_counting", "simple_equations"])
def test_gym_takes_its_own_answer_and_no_other(family):
    item = gym_problem(family)
    assert verify(item, item.answer) == CORRECT
    assert verify(item, str(int(item.answer) + 1)) == WRONG
    assert verify(item, "no idea") == WRONG
    assert verify(item, None) == WRONG


def test_part_payments_of_the_gym_do_not_count(monkeypatch):
    monkeypatch.setattr(verifiers, "_gym_scorer", lambda family: lambda answer, entry: 0.99)
    assert verify(gym_problem("chain_sum"), "7") == WRONG


@pytest.mark.parametrize(
    "error", [ValueError, ZeroDivisionError, KeyError, RecursionError, SyntaxError, AssertionError]
)
def test_a_crash_is_not_a_wrong_answer(monkeypatch, error):
    def crash(answer, entry):
        raise error("scorer")

    monkeypatch.setattr(verifiers, "_gym_scorer", lambda family: crash)
    assert verify(gym_problem("chain_sum"), "7") == UNVERIFIED


def test_a_stop_request_is_not_a_crash(monkeypatch):
    def interrupt(answer, entry):
        raise KeyboardInterrupt

    monkeypatch.setattr(verifiers, "_gym_scorer", lambda family: interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify(gym_problem("chain_sum"), "7")


def test_bad_data_is_neither_wrong_nor_unverified():
    with pytest.raises(DataError, match="'verifier': got 'vibes'"):
        verify(problem("7", "vibes"), "7")
    chain_sum = gym_problem("chain_sum")
    for family in ("countdown", "game_of_life_halting", "no_such_family"):
        with pytest.raises(DataError, match=family):
            verify(dataclasses.replace(chain_sum, source=f"gym:{family}"), "7")


def test_every_gym_scorer_that_evaluates_answers_is_refused():
    """By source: a scorer that mentions eval or parse_expr, itself or in the helpers of its class."""
    evaluating = re.compile(r"(?<![\w.])eval\(answer|parse_expr\((?:user_)?answer")
    found = {
        name
        for name, (dataset, _) in reasoning_gym.factory.DATASETS.items()
        if evaluating.search(inspect.getsource(dataset))
    }
    assert found == verifiers.EVALUATES_ANSWERS


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [("a b", " a\n b ", CORRECT), ("7", "7", CORRECT), ("7", "8", WRONG), ("7", "", WRONG), ("Yes", "yes", WRONG)],
)
def test_exact(gold, answer, verdict):
    assert verify(problem(gold, "exact"), answer) == verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("0.5", "\\frac{1}{2}", CORRECT),
        ("\\frac{1}{2}", "0.5", CORRECT),
        ("1000", "1,000", CORRECT),
        ("12", "12.0", CORRECT),
        ("x+1", "1+x", CORRECT),
        ("12", "", WRONG),
        ("12", "seven", WRONG),
        ("50", "50\\%", WRONG),
        ("0.5", "50\\%", WRONG),
        ("7", None, WRONG),
    ],
)
def test_math(gold, answer, verdict):
    """UT 7"""
    assert verify(problem(gold, "math"), answer) == verdict


def test_a_question_that_hangs_is_killed_on_time_and_the_next_one_is_judged():
    judge = MathJudge()
    try:
        assert judge.equal("7", "7", deadline_s=5.0)
        start = time.perf_counter()
        with pytest.raises(JudgeDied):
            judge.equal("7", "10^{10^{10^{10}}} + 9^{9^{9^9}}!", deadline_s=0.3)
        assert time.perf_counter() - start < 2.0
        assert judge.equal("7", "7", deadline_s=5.0)
    finally:
        judge.close()
