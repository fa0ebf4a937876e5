"""Verifiable rewards: is this answer right?

A verifier that crashes or runs into its deadline says `unverified`, which is not a wrong answer; `verify` is the one
boundary where that is decided. No answer at all is wrong. Model output is data: gym families whose scorer would
evaluate an answer as code are refused, because nothing here is a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import reasoning_gym

from posttrain.records import DataError, Problem, Verdict
from posttrain.rewards.math_judge import JudgeDied, shared_judge

WRONG = Verdict(0.0, "wrong")
RIGHT = Verdict(1.0, "correct")
UNVERIFIED = Verdict(0.0, "unverified")

MATH_DEADLINE_S = 2.0
"""Wall-clock time that one symbolic comparison may take."""

EVALUATES_ANSWERS = frozenset(
    (
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    )
)
"""Gym families of reasoning-gym 0.1.25 whose scorer passes the answer to eval or to sympy's parse_expr."""

PAYS_GARBAGE = frozenset(("game_of_life_halting",))
"""Gym families whose scorer pays 1.0 for text without an answer."""

_CRASHES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    JudgeDied,
    LookupError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@cache
def _gym_scorer(family: str) -> Callable[[str, dict[str, Any]], float]:
    """The family's own scorer; refused families and unknown names raise DataError."""
    if family in EVALUATES_ANSWERS | PAYS_GARBAGE:
        reason = "evaluates answers as code" if family in EVALUATES_ANSWERS else "pays for garbage"
        raise DataError(f"gym family '{family}': its scorer {reason}; wanted: another family")
    if family not in reasoning_gym.factory.DATASETS:
        raise DataError(f"gym family '{family}': unknown to reasoning-gym")
    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(family)
    return scorer


def gym_verdict(problem: Problem, answer: str) -> Verdict:
    """The gym's scorer, counted only at 1.0: several families pay a little for anything."""
    scorer = _gym_scorer(problem.source.removeprefix("gym:"))
    entry = {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}
    return RIGHT if scorer(answer, entry) >= 1.0 else WRONG


def exact_verdict(problem: Problem, answer: str) -> Verdict:
    """Equal text, up to runs of white space."""
    return RIGHT if answer.split() == problem.answer.split() else WRONG


def math_verdict(problem: Problem, answer: str) -> Verdict:
    """Equal as mathematics (math-verify), in a process of its own that a deadline kills.

    A percentage equals no plain number: `50%` is neither 50 nor 0.5.
    """
    if not answer.strip():
        return WRONG
    return RIGHT if shared_judge().equal(problem.answer, answer, deadline_s=MATH_DEADLINE_S) else WRONG


VERIFIERS: Mapping[str, Callable[[Problem, str], Verdict]] = {
    "gym": gym_verdict,
    "exact": exact_verdict,
    "math": math_verdict,
}


def verify(problem: Problem, answer: str | None) -> Verdict:
    """Judge an extracted answer; None (no answer was given) is wrong, a crash or a timeout is unverified.

    An unknown verifier or a refused gym family raises DataError: the data is at fault, not the answer.
    """
    if problem.verifier not in VERIFIERS:
        raise DataError(f"problem {problem.id}: field 'verifier': got '{problem.verifier}', wanted {sorted(VERIFIERS)}")
    if answer is None:
        return WRONG
    try:
        return VERIFIERS[problem.verifier](problem, answer)
    except DataError:
        raise
    except _CRASHES:
        return UNVERIFIED
