"""From problems, traces and samples to supervised training examples in both modes.

Flags are drawn so that every form a user may write is seen: none, the plain flag, a flag overruled by a later one, and
for answers without thinking the hard switch too, where the template itself writes the empty block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from posttrain.chat.split import answer_form, written
from posttrain.config import Habits
from posttrain.curation.solvers import solvable
from posttrain.curation.traces import write_trace
from posttrain.records import Conversation, DataError, Message, Problem

THINK_FLAGS = ("", " /think", " /no_think /think")
NO_THINK_FLAGS = (" /no_think", " /think /no_think", "")
"""The empty one is the hard switch: nothing in the text asks for it."""


def think_example(problem: Problem, thinking: str, answer: str, *, name: str, flag: str = "") -> Conversation:
    """One worked example; `name` makes its id unique for the problem."""
    given = written(answer, answer_form(problem.verifier))
    messages = (Message("user", problem.prompt + flag), Message("assistant", given, thinking))
    return Conversation(f"{problem.id}-{name}", problem.id, messages, "think")


def no_think_example(problem: Problem, answer: str, *, name: str, flag: str) -> Conversation:
    """One direct answer; with an empty flag it is asked for by the hard switch."""
    given = written(answer, answer_form(problem.verifier))
    messages = (Message("user", problem.prompt + flag), Message("assistant", given, ""))
    return Conversation(f"{problem.id}-{name}", problem.id, messages, "no_think")


def trace_conversations(
    problems: Sequence[Problem], habits: Habits, *, per_problem: int, seed: int
) -> list[Conversation]:
    """Long-CoT traces: the data's own worked solutions, and generated ones where this world can work a problem out.

    Raises DataError when there is neither for any problem.
    """
    rng = random.Random(seed)
    examples = []
    for problem in problems:
        if solution := str(problem.metadata.get("solution", "")):
            examples.append(think_example(problem, solution, problem.answer, name="solution"))
        for number in range(per_problem if solvable(problem) else 0):
            trace = write_trace(problem, habits, rng)
            examples.append(think_example(problem, trace.working, trace.answer, name=f"trace{number}"))
    if not examples:
        raise DataError(
            "curate.sources: no problem has a worked solution, wanted at least one to start from; "
            "for data of your own, name the field that holds it (fields.solution)"
        )
    return examples
