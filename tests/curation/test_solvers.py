"""Worked solutions: every family's last value is what the gym itself scores 1.0, and every shown equation is true."""

import math
import re

import pytest
import reasoning_gym

from posttrain.curation.solvers import SOLVERS, solvable, solve
from posttrain.records import Problem

OPTIONS = {
    "chain_sum": {"min_terms": 3, "max_terms": 7, "min_digits": 1, "max_digits": 2},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "max_value": 60},
    "leg_counting": {"min_animals": 2, "max_animals": 5, "max_instances": 9},
    "simple_equations": {"min_terms": 2, "max_terms": 3, "max_value": 20},
}


def problems(family: str, size: int = 300) -> list[tuple[Problem, object]]:
    data = reasoning_gym.create_dataset(family, size=size, seed=5, **OPTIONS[family])
    rows = []
    for entry in data:
        metadata = {**entry["metadata"], "family": family}
        problem = Problem("x", entry["question"], entry["answer"], "gym", "d", "s", None, metadata)
        if solvable(problem):
            rows.append((problem, lambda answer, entry=entry: data.score_answer(answer, entry)))
    return rows


@pytest.mark.parametrize("family", sorted(SOLVERS))
def test_the_last_step_is_the_answer(family: str) -> None:
    rows = problems(family)
    assert len(rows) > 280
    for problem, score in rows:
        solution = solve(problem)
        assert score(str(solution.value)) == 1.0
        assert sum(term.value for term in solution.terms) == solution.value


@pytest.mark.parametrize("family", sorted(SOLVERS))
def test_every_step_is_a_true_equation(family: str) -> None:
    for problem, _ in problems(family):
        for step in solve(problem).steps:
            assert re.fullmatch(r"[-+*/%\d]+|gcd\(\d+,0\)", step.text)
            assert eval(step.text, {"gcd": math.gcd}) == step.value  # nothing but arithmetic, checked above


def test_chain_sum_by_hand() -> None:
    problem = Problem("x", "4 - 1 + 9", "12", "gym", "d", "s", None, {"family": "chain_sum", "expression": "4 - 1 + 9"})
    assert [(step.text, step.value) for step in solve(problem).steps] == [("4-1", 3), ("3+9", 12)]
    assert [term.text for term in solve(problem).terms] == ["+4", "-1", "+9"]


def test_equation_with_the_unknown_subtracted() -> None:
    metadata = {"family": "simple_equations", "equation": "5 - 8*e = -51"}
    problem = Problem("x", "?", "7", "gym", "d", "s", None, metadata)
    assert [(step.text, step.value) for step in solve(problem).steps] == [("-51-5", -56), ("-56/-8", 7)]


def test_an_equation_without_its_unknown_is_not_solvable() -> None:
    metadata = {"family": "simple_equations", "equation": "0 = 0"}
    assert not solvable(Problem("x", "?", "7", "gym", "d", "s", None, metadata))
    assert not solvable(Problem("x", "?", "7", "exact", "d", "users.jsonl"))
