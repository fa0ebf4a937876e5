"""Programs judged by unit tests: what is run; where it may run is posttrain/engine/sandbox.py."""

from __future__ import annotations

from posttrain.records import DataError, Problem


def program_with_tests(problem: Problem, answer: str) -> str:
    """The answer and below it the tests, as one program that comes to its end only when all tests pass.

    `metadata.tests`: Python statements that raise when the answer is wrong (`assert add(1, 2) == 3`). Missing or empty
    tests raise DataError: everything would pass.
    """
    tests = problem.metadata.get("tests")
    if not isinstance(tests, str) or not tests.strip():
        raise DataError(f"problem {problem.id}: field 'metadata.tests': got {tests!r:.80}, wanted: Python statements")
    return f"{answer}\n\n{tests}\n"
