"""Written solutions with habits: what a pre-training corpus and long-CoT traces of the default world are made of.

A real base model has read careful work, hasty work, bare answers and guesses, in more than one language; supervised
traces are right but long-winded, with detours, double checks and mixed language. Both come from here: the corpus with
slips, the traces without. Reinforcement learning then has something true to select from: careful work is right more
often because hasty leaps are hard for a small model, not because a label says so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from posttrain.config import Habits
from posttrain.curation.solvers import Solution, Step, solve
from posttrain.records import Problem

Habit = Literal["careful", "hasty", "direct", "guess"]


@dataclass(frozen=True, slots=True)
class Words:
    """The connecting words of a script."""

    careful: str
    hasty: str
    then: str
    so: str
    check: str
    same: str
    different: str
    detour: str
    again: str
    remarks: tuple[str, ...]


ENGLISH = Words(
    careful="Step by step:",
    hasty="Quickly:",
    then="then",
    so="So the answer is",
    check="Check again:",
    same="Same.",
    different="Different.",
    detour="maybe",
    again="no, start over.",
    remarks=("That looks right.", "I am sure about this.", "Nothing was left out.", "All is done in order."),
)
CHINESE = Words(
    careful="一步一步:",
    hasty="很快:",
    then="然后",
    so="所以答案是",
    check="再检查:",
    same="一样.",
    different="不一样.",
    detour="也许",
    again="不对重来.",
    remarks=("看起来对.", "我很确定.", "没有遗漏.", "都做完了."),
)
OFF_BY = (-10, -2, -1, 1, 2, 10)
"""What a careless result is wrong by."""
MOST_REMARKS = 10
"""Sentences that add nothing, of which a remarked solution has 1 to this many: excess that can shrink by and by."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A worked solution. `working` is empty for bare answers and guesses."""

    habit: Habit
    working: str
    answer: str


def write_trace(problem: Problem, habits: Habits, rng: random.Random) -> Trace:
    """One solution drawn from the mix of habits; with slip 0 every careful or hasty one ends right.

    A check works everything out a second time. When it comes out different, a third, careful time decides: then a check
    pays as long as mistakes happen, and is only long once they do not.
    """
    habit: Habit = rng.choices(
        ("careful", "hasty", "direct", "guess"), (habits.careful, habits.hasty, habits.direct, habits.guess)
    )[0]
    solution = solve(problem)
    if habit == "direct":
        return Trace(habit, "", problem.answer)
    if habit == "guess":
        return Trace(habit, "", str(solution.value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))))
    second = rng.random() < habits.second_script
    opening = _word("careful" if habit == "careful" else "hasty", second, rng)
    detour = f" {_detour(problem, second, rng)}" if rng.random() < habits.detour else ""
    shown = solution.steps if habit == "careful" else _leaps(solution, habits.slip, rng)
    checked = rng.random() < habits.check
    first = _mistaken(shown, rng) if checked and rng.random() < habits.mistake else shown
    text = f"{opening}{detour} {_steps(first, second, rng)}"
    if checked:
        text += f" {_word('check', second, rng)} {_steps(shown, second, rng)}"
        if first is shown:
            text += f" {_word('same', second, rng)}"
        else:
            shown = solution.steps
            text += f" {_word('different', second, rng)} {_word('careful', second, rng)} {_steps(shown, second, rng)}"
    answer = str(shown[-1].value)
    text += f" {_word('so', second, rng)} {answer}."
    if rng.random() < habits.remarks:
        text += "".join(f" {_remark(second, rng)}" for _ in range(rng.randint(1, MOST_REMARKS)))
    return Trace(habit, text, answer)


def _mistaken(steps: tuple[Step, ...], rng: random.Random) -> tuple[Step, ...]:
    """The same work with a wrong result at its end."""
    last = steps[-1]
    return (*steps[:-1], Step(last.text, last.value + rng.choice(OFF_BY), last.label))


def _word(name: str, second: bool, rng: random.Random) -> str:
    """A connecting word; a text of mixed language takes every other word from the second script."""
    words = CHINESE if second and rng.random() < 0.5 else ENGLISH
    return str(getattr(words, name))


def _remark(second: bool, rng: random.Random) -> str:
    """A sentence that adds nothing."""
    return rng.choice((CHINESE if second and rng.random() < 0.5 else ENGLISH).remarks)


def _steps(steps: tuple[Step, ...], second: bool, rng: random.Random) -> str:
    text = ""
    for number, step in enumerate(steps):
        joint = "" if number == 0 else f", {_word('then', second, rng)} "
        label = f"{step.label} " if step.label else ""
        text += f"{joint}{label}{step.text}={step.value}"
    return text + "."


def _leaps(solution: Solution, slip: float, rng: random.Random) -> tuple[Step, ...]:
    """Runs of two or three terms, each combined in one leap: what is hard to get right without the steps between.

    With probability `slip` a leap's value is off, and the next one goes on from there, as a careless person would.
    """
    leaps: list[Step] = []
    total = 0
    position = 0
    while position < len(solution.terms):
        run = solution.terms[position : position + rng.choice((2, 3)) + (position == 0)]
        position += len(run)
        left = ("" if not leaps else str(total)) + "".join(term.text for term in run)
        total += sum(term.value for term in run)
        if rng.random() < slip:
            total += rng.choice(OFF_BY)
        leaps.append(Step(left.removeprefix("+"), total))
    return tuple(leaps)


def _detour(problem: Problem, second: bool, rng: random.Random) -> str:
    """A start that leads nowhere: two numbers of the problem, combined without a reason."""
    numbers = [int(part) for part in "".join(c if c.isdigit() else " " for c in problem.prompt).split()]
    first, other = rng.choice(numbers), rng.choice(numbers)
    return f"{_word('detour', second, rng)} {first}+{other}={first + other}, {_word('again', second, rng)}"
