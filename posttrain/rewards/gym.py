"""Answers to problems of reasoning-gym, judged by the family's own scorer.

Model output is data: families whose scorer would evaluate an answer as code are refused, because their worker is no
sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import reasoning_gym

from posttrain.records import RIGHT, WRONG, DataError, Problem, Verdict

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
