"""The pre-training corpus of the default world: plain documents, a question and what somebody wrote under it.

No chat markup: a base model has never seen a conversation. Three kinds of document: worked solutions ("Solution:"),
bare answers ("Answer:"), told apart by their second line so that a base model can be asked to work or to guess, and
drills, rows of single operations, from which the arithmetic itself is learnt at a fraction of the tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from posttrain.config import Habits
from posttrain.curation.solvers import solve
from posttrain.curation.traces import Trace, write_trace
from posttrain.records import Problem

DRILL_LENGTH = 10


def question_text(prompt: str) -> str:
    """First line of a document."""
    return f"Question: {prompt.strip()}\n"


def document(problem: Problem, trace: Trace) -> str:
    """A question with its solution, without the end token."""
    head = f"Solution:\n{trace.working}\n\n" if trace.working else "Answer: "
    return f"{question_text(problem.prompt)}{head}\\boxed{{{trace.answer}}}"


def drill(problems: Sequence[Problem], rng: random.Random) -> str:
    """True operations, as they occur in solutions of randomly drawn problems."""
    steps = [rng.choice(solve(problem).steps) for problem in rng.choices(problems, k=DRILL_LENGTH)]
    return "Practice: " + ", ".join(f"{step.text}={step.value}" for step in steps)


def write_corpus(
    problems: Sequence[Problem], habits: Habits, *, documents: int, drill_share: float, seed: int
) -> list[str]:
    """`documents` texts; the solutions go over the problems in turn, each pass in a new order."""
    rng = random.Random(seed)
    texts = [drill(problems, rng) for _ in range(round(documents * drill_share))]
    while len(texts) < documents:
        for problem in rng.sample(list(problems), min(len(problems), documents - len(texts))):
            texts.append(document(problem, write_trace(problem, habits, rng)))
    rng.shuffle(texts)
    return texts
