"""Worked solutions of the default world's problems, from the metadata of the gym's rows.

A solution comes twice: as single operations (what careful work shows) and as terms that can be combined in one leap
(what hasty work shows). traces.py decides which is written, and in which words. The last value is the answer: a test
holds that against the gym's own scorer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from posttrain.records import Problem


@dataclass(frozen=True, slots=True)
class Step:
    """One shown equation: `text` is the left side ("3+4"), `value` its result."""

    text: str
    value: int
    label: str = ""
    """What it is about, in the problem's own words ("3 cats"); empty where the numbers speak for themselves."""


@dataclass(frozen=True, slots=True)
class Term:
    """A summand of the whole problem: `text` with its sign ("-7", "+2*6"), `value` what it adds."""

    text: str
    value: int


@dataclass(frozen=True, slots=True)
class Solution:
    steps: tuple[Step, ...]
    terms: tuple[Term, ...]
    """The answer is the sum of the terms' values."""

    @property
    def value(self) -> int:
        return self.steps[-1].value


def solve_chain_sum(metadata: dict[str, Any]) -> Solution:
    """Left to right, one term at a time."""
    tokens = str(metadata["expression"]).split()
    total = int(tokens[0])
    steps = []
    terms = [Term(f"+{total}", total)]
    for sign, number in zip(tokens[1::2], tokens[2::2], strict=True):
        value = int(sign + number)
        steps.append(Step(f"{total}{sign}{number}", total + value))
        terms.append(Term(f"{sign}{number}", value))
        total += value
    return Solution(tuple(steps), tuple(terms))


def solve_leg_counting(metadata: dict[str, Any]) -> Solution:
    """Legs of each kind of animal, added to the running total as soon as they are known."""
    steps: list[Step] = []
    terms: list[Term] = []
    total = 0
    for number, (animal, count) in enumerate(metadata["animals"].items()):
        product, legs = f"{count}*{ANIMALS[animal]}", count * ANIMALS[animal]
        steps.append(Step(product, legs, label=f"{count} {animal}{'s' if count > 1 else ''}"))
        if number > 0:
            steps.append(Step(f"{total}+{legs}", total + legs))
        terms.append(Term(f"+{product}", legs))
        total += legs
    return Solution(tuple(steps), tuple(terms))


_LINEAR = re.compile(
    r"(?:(?P<before>-?\d+) (?P<sign>[+-]) )?(?P<minus>-)?(?:(?P<factor>\d+)\*)?[a-z]"
    r"(?: (?P<op>[+-]) (?P<after>\d+))? = (?P<right>-?\d+)"
)


def solve_simple_equations(metadata: dict[str, Any]) -> Solution:
    """a*x + b = c or b - a*x = c: undo the sum, then the product. The whole way in one leap is a single term."""
    match = _LINEAR.fullmatch(str(metadata["equation"]))
    if match is None:
        raise ValueError(f"not a linear equation with one unknown term: {metadata['equation']!r}")
    value, factor = int(match["right"]), int(match["factor"] or 1)
    factor = -factor if (match["sign"] == "-") != bool(match["minus"]) else factor
    constant = int(match["before"] or 0) + int((match["op"] or "") + (match["after"] or "0"))
    steps = []
    leap = str(value)
    if constant:
        steps.append(Step(f"{value}{-constant:+d}", value - constant))
        leap = f"({value}{-constant:+d})"
        value -= constant
    if factor != 1 or not steps:
        steps.append(Step(f"{value}/{factor}", value // factor))
    return Solution(tuple(steps), (Term(f"+{leap}/{factor}", value // factor),))


def solve_gcd(metadata: dict[str, Any]) -> Solution:
    """Euclid: the remainder of the larger by the smaller, until nothing is left."""
    larger, smaller = max(metadata["numbers"]), min(metadata["numbers"])
    leap = f"+gcd({larger},{smaller})"
    steps = []
    while smaller:
        steps.append(Step(f"{larger}%{smaller}", larger % smaller))
        larger, smaller = smaller, larger % smaller
    return Solution((*steps, Step(f"gcd({larger},0)", larger)), (Term(leap, larger),))


SOLVERS: dict[str, Callable[[dict[str, Any]], Solution]] = {
    "chain_sum": solve_chain_sum,
    "gcd": solve_gcd,
    "leg_counting": solve_leg_counting,
    "simple_equations": solve_simple_equations,
}


def solvable(problem: Problem) -> bool:
    """Whether this world can write a worked solution for the problem."""
    family = problem.metadata.get("family")
    if family == "simple_equations":  # the gym writes a few whose unknown has cancelled out ("0 = 0")
        return _LINEAR.fullmatch(str(problem.metadata["equation"])) is not None
    return family in SOLVERS


def solve(problem: Problem) -> Solution:
    """The worked solution of a problem; its family must be one of SOLVERS."""
    return SOLVERS[problem.metadata["family"]](problem.metadata)
