"""Answers that are equal as mathematics, by math-verify.

Simplification can hang in C code for as long as it likes, and math-verify's own timeouts work only in a main thread:
they are off, and the worker's deadline is the only one.
"""

from __future__ import annotations

import logging

from math_verify import parse, verify

from posttrain.records import RIGHT, WRONG, Problem, Verdict


def math_verdict(problem: Problem, answer: str) -> Verdict:
    """Equal as mathematics. A percentage equals no plain number: `50%` is neither 50 nor 0.5.

    A gold answer that cannot be read raises ValueError.
    """
    if not answer.strip():
        return WRONG
    logging.disable(logging.WARNING)
    gold, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (problem.answer, answer))
    if not gold:
        raise ValueError(f"the reference answer cannot be parsed: {problem.answer[:80]!r}")
    return RIGHT if verify(gold, given, timeout_seconds=None) else WRONG
