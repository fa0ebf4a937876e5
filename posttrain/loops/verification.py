"""Verifiable rewards: is this answer right?

Every kind of verifier is a function (problem, answer) -> verdict and runs in worker processes of its own, with a
deadline and a memory limit; programs run inside the sandbox on top of that. A verifier that crashes twice, runs into
its deadline or out of memory says `unverified`, which is not a wrong answer; this module is the boundary where that is
decided. No answer at all is wrong. Run as `python -m posttrain.loops.verification KIND` it is a worker.
"""

from __future__ import annotations

import atexit
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from posttrain.engine.sandbox import Limits, available, run_program
from posttrain.engine.workers import Question, Reply, WorkerPool, serve
from posttrain.machine import usable_cores
from posttrain.records import RIGHT, UNVERIFIED, VERIFIERS, WRONG, DataError, Problem, Verdict

Check = Callable[[Problem, str], Verdict]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the workers of a kind may use."""

    deadline_s: float
    """Wall-clock time of one verdict."""
    memory_bytes: int = 2 << 30
    """Address space of a worker, of which its libraries take up to 240 MiB (`gym`)."""
    workers: int = 1
    locked: bool = True
    """Starts no process, opens no socket, changes no file."""


PROGRAM = Limits()
KINDS: Mapping[str, Kind] = {
    "gym": Kind(5.0),
    "exact": Kind(5.0),
    "math": Kind(2.0, workers=usable_cores()),
    "choice": Kind(5.0),
    "constraint": Kind(5.0),
    # The sandbox has the deadline of the program; the worker's is for the sandbox itself.
    "code": Kind(PROGRAM.wall_s + 15.0, workers=usable_cores(), locked=False),
}


def verify(problem: Problem, answer: str | None) -> Verdict:
    """Judge an extracted answer, see `verify_all`."""
    return verify_all([(problem, answer)])[0]


def verify_all(asked: Sequence[tuple[Problem, str | None]]) -> list[Verdict]:
    """A verdict for each extracted answer; None (no answer was given) is wrong, a crash or a timeout is unverified.

    An unknown verifier, a refused gym family, or missing tests or constraints raise DataError: the data is at fault,
    not the answer. SandboxError: there is code to judge, and nothing safe to run it in.
    """
    verdicts = [WRONG] * len(asked)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, (problem, answer) in enumerate(asked):
        if problem.verifier not in KINDS:
            raise DataError(
                f"problem {problem.id}: field 'verifier': got '{problem.verifier}', wanted {sorted(VERIFIERS)}"
            )
        if answer is not None:
            places[problem.verifier].append(place)
    for kind, of_kind in places.items():
        questions = [_question(*asked[place]) for place in of_kind]
        for place, reply in zip(of_kind, pool(kind).ask(questions), strict=True):
            verdicts[place] = _verdict(reply)
    return verdicts


@cache
def pool(kind: str) -> WorkerPool:
    """The workers of a kind, of this process; they end with it."""
    if kind == "code":
        available()  # refused here, once and with its reason, and not sample by sample
    command = [sys.executable, "-m", "posttrain.loops.verification", kind]
    workers = WorkerPool(command, deadline_s=KINDS[kind].deadline_s, workers=KINDS[kind].workers)
    atexit.register(workers.close)
    return workers


def _question(problem: Problem, answer: str | None) -> Question:
    return {
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "verifier": problem.verifier,
        "domain": problem.domain,
        "source": problem.source,
        "metadata": problem.metadata,
        "given": answer,
    }


def _verdict(reply: Reply | None) -> Verdict:
    if reply is None or "error" in reply:
        return UNVERIFIED
    if "data_error" in reply:
        raise DataError(reply["data_error"])
    return Verdict(reply["score"], reply["status"])


def answering(check: Check) -> Callable[[Question], Reply]:
    """A worker's answer to a question: the verdict, or what is wrong with the data."""

    def answer(question: Question) -> Reply:
        problem = Problem(**{name: value for name, value in question.items() if name != "given"})
        try:
            verdict = check(problem, question["given"])
        except DataError as error:
            return {"data_error": str(error)}
        return {"score": verdict.score, "status": verdict.status}

    return answer


def check_of(kind: str) -> Check:
    """The function of a kind. Imported here: a worker needs its own libraries and no other's, its parent none."""
    if kind == "gym":
        from posttrain.rewards.gym import gym_verdict

        return gym_verdict
    if kind == "math":
        from posttrain.rewards.math_answers import math_verdict

        return math_verdict
    if kind == "constraint":
        from posttrain.rewards.constraints import constraint_verdict

        return constraint_verdict
    if kind == "code":
        return code_verdict
    from posttrain.rewards.text_answers import choice_verdict, exact_verdict

    return {"exact": exact_verdict, "choice": choice_verdict}[kind]


def code_verdict(problem: Problem, answer: str) -> Verdict:
    """The answer's program passes all its tests, in the sandbox."""
    from posttrain.rewards.code import program_with_tests

    outcome = run_program(program_with_tests(problem, answer), limits=PROGRAM)
    return {"passed": RIGHT, "failed": WRONG, "unknown": UNVERIFIED}[outcome.status]


def main() -> None:
    kind = sys.argv[1]
    limits = KINDS[kind]
    serve(
        answering(check_of(kind)),
        deadline_s=limits.deadline_s,
        memory_bytes=limits.memory_bytes,
        locked=limits.locked,
    )


if __name__ == "__main__":
    main()
