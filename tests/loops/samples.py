"""Samples made up for tests of what is kept and what is paired."""

from __future__ import annotations

from posttrain.chat.split import split_response
from posttrain.loops.sample import Sample
from posttrain.records import Finish, Problem, Rollout, Status, Verdict

ASKED = Problem("p1", "What is 3 + 4?", "7", "exact", "arithmetic", "gym:chain_sum")


def made(
    tokens: int,
    *,
    status: Status = "correct",
    thinking: str | None = None,
    finish: Finish = "stop",
    problem: Problem = ASKED,
    mixed: bool = False,
) -> Sample:
    """A response of `tokens` tokens; its thought says how long it is, unless it is given."""
    text = f"<think>\n{f'{tokens} words' if thinking is None else thinking}\n</think>\n\n\\boxed{{7}}"
    ids = tuple(range(3, 3 + tokens))
    rollout = Rollout(problem.id, (1, 2), ids, (-0.5,) * tokens, finish, (0,) * tokens)
    verdict = Verdict(float(status == "correct"), status)
    return Sample(problem, "think", rollout, text, split_response(text), verdict, mixed)
