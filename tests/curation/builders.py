"""Problems for the tests, and a verifier that knows only the gold answer."""

from __future__ import annotations

from posttrain.config import GymFamily, GymSource, Scalar
from posttrain.records import Problem, Verdict

Family = tuple[str, float, dict[str, Scalar | tuple[Scalar, ...]]]

CHAIN = "State the final answer to the following arithmetic problem: {} ="
LEGS = (
    "Your task is to count how many legs there are in total when given a list of animals.\n\n"
    "Now, how many legs are there in total if you have {}?"
)


def problem(prompt: str, answer: str = "1", *, source: str = "mine.jsonl", own_id: str | None = None) -> Problem:
    return Problem(
        id=own_id or f"{source}|{prompt}|{answer}",
        prompt=prompt,
        answer=answer,
        verifier="exact",
        domain="arithmetic",
        source=source,
    )


def exact(row: Problem, answer: str | None) -> Verdict:
    """Right is the gold answer, or the one the row says is true; `crash` stands for a verifier that crashed."""
    if answer == "crash":
        return Verdict(score=0.0, status="unverified")
    right = answer == row.metadata.get("truth", row.answer)
    return Verdict(score=float(right), status="correct" if right else "wrong")


def gym_source(problems: int, *families: Family) -> GymSource:
    return GymSource(
        kind="gym",
        problems=problems,
        families=tuple(GymFamily(name=name, weight=weight, options=options) for name, weight, options in families),
    )
