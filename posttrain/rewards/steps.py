"""Steps of a worked response: where they end, which of them are right, and one score made of many.

A step is a stretch of the response that states something: an equation ("then 3-7=-4,"), the claim of an answer, or that
a check came out the same or different. Words that state nothing (openings, "no, start over.", remarks) belong to the
step behind them, so that idle sentences are no steps that a reward could pay for. The answer behind the thinking is the
last step; a response that breaks off ends with an unfinished one. Steps are found in the text and located in the token
ids, of which they leave none out.

`check_steps` is the default world's exact judge, the noise-free ceiling of a learned one: the solver's routes are all
ways in which the world works a problem out, one operation at a time or several in a leap, and an equation is right when
it is true and goes on from where the work stands, or starts over. What builds on a slip does not belong to the problem,
true as its arithmetic may be. Left out: right solutions along routes that the world does not write, which count as
wrong.

Sources: Lightman et al., arXiv 2305.20050 (step labels); Wang et al., arXiv 2312.08935 (scores at step ends).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from transformers import PreTrainedTokenizerFast

from posttrain.chat.split import extract_answer
from posttrain.chat.template import THINK_CLOSE, decode_ids
from posttrain.curation.solvers import SOLVERS, Solution, solvable, solve
from posttrain.curation.traces import CHINESE, ENGLISH
from posttrain.records import DataError, Problem
from posttrain.rl.process import StepReward

Kind = Literal["equation", "claim", "verdict", "answer", "unfinished"]

_SCRIPTS = (ENGLISH, CHINESE)
_BOUNDARY = re.compile(r"[,.](?=\s|$)")
_OPENINGS = tuple(word for words in _SCRIPTS for word in (words.careful, words.hasty, words.check))
_CLAIM = re.compile("|".join(f"{re.escape(words.so)}(?: (-?\\d+)\\.$)?" for words in _SCRIPTS))
_LEFT = re.compile(r"\S*$")
_VALUE = re.compile(r"-?\d+")
_SUM = re.compile(r"(\d+)\+(\d+)")
_NUMBER = re.compile(r"\d+")
_LONGEST_NUMBER = 18
"""Digits; what is longer is no number of this world, and slow to read."""


@dataclass(frozen=True, slots=True)
class WrittenStep:
    end: int
    """Index among the response tokens of the step's last one."""
    kind: Kind
    text: str


def split_steps(tokenizer: PreTrainedTokenizerFast, response_ids: Sequence[int]) -> list[WrittenStep]:
    """The steps of a response, in order; each begins behind the one before, and the last ends with the response."""
    text = decode_ids(tokenizer, response_ids)
    ends = token_ends(tokenizer, response_ids, text)
    steps: list[WrittenStep] = []
    start = 0
    for end, kind in split_text(text):
        last = len(response_ids) - 1 if end == len(text) else bisect_left(ends, end)
        if steps and steps[-1].end == last:  # one token, two ends
            start -= len(steps.pop().text)
        steps.append(WrittenStep(last, kind, text[start:end]))
        start = end
    return steps


def token_ends(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], text: str) -> list[int]:
    """Characters of `text` that are complete with each token; `text` is what the ids decode to.

    Bytes of one character may be spread over several tokens. Then tokens decoded one by one do not add up to the text,
    and every beginning is decoded instead, which takes longer.
    """
    pieces = tokenizer.backend_tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
    if "".join(pieces) == text:
        return list(accumulate(map(len, pieces)))
    beginnings = tokenizer.backend_tokenizer.decode_batch(
        [list(ids[:stop]) for stop in range(1, len(ids) + 1)], skip_special_tokens=False
    )
    # A character that is not complete is shown as the replacement character, until it is.
    return [len(found if text.startswith(found) else found.rstrip("\ufffd")) for found in beginnings]


def split_text(text: str) -> list[tuple[int, Kind]]:
    """(end, kind) of every step of a decoded response, in characters; the last one ends with the text."""
    thinking, closed, _ = text.rpartition(THINK_CLOSE)
    if not closed:
        thinking = text
    steps: list[tuple[int, Kind]] = []
    start = 0
    for boundary in _BOUNDARY.finditer(thinking):
        if kind := _kind(thinking[start : boundary.end()]):
            start = boundary.end()
            steps.append((start, kind))
    if start < len(text):
        steps.append((len(text), "answer" if closed else "unfinished"))
    return steps


def _kind(words: str) -> Kind | None:
    """What a stretch states; None: nothing yet."""
    if "=" in words:
        return "equation"
    if _CLAIM.search(words):
        return "claim"
    return "verdict" if any(script.same in words or script.different in words for script in _SCRIPTS) else None


Place = tuple[str, int]
"""How far a solution has come along one of its two ways, see `routes`."""


def routes(solution: Solution) -> dict[Place, dict[str, tuple[str, Place]]]:
    """From each place: left side of every right equation -> (its value, where it leads).

    `steps` goes one operation at a time; `terms` sums up any number of further terms in a leap.
    """
    moves: dict[Place, dict[str, tuple[str, Place]]] = {
        ("steps", number): {step.text: (str(step.value), ("steps", number + 1))}
        for number, step in enumerate(solution.steps)
    }
    total = 0
    for number, first in enumerate(solution.terms):
        left, value = "" if number == 0 else str(total), total
        leaps: dict[str, tuple[str, Place]] = {}
        for reached, term in enumerate(solution.terms[number:], start=number + 1):
            left, value = left + term.text, value + term.value
            leaps[left.removeprefix("+")] = (str(value), ("terms", reached))
        moves["terms", number] = leaps
        total += first.value
    return moves


START: frozenset[Place] = frozenset((("steps", 0), ("terms", 0)))


@dataclass(slots=True)
class _Page:
    """What stands on the page so far."""

    solution: Solution
    numbers: frozenset[str]
    """Those of the question."""
    moves: Mapping[Place, Mapping[str, tuple[str, Place]]]
    places: frozenset[Place] = START
    """Where the work can be taken to stand; empty behind an error."""
    runs: list[str] = field(default_factory=lambda: [""])
    """Last value of each time the problem was worked out, right or not."""
    complete: bool = False
    """Whether one time has come, without an error, to the end."""
    stated: bool = False

    def equation(self, text: str) -> bool:
        self.stated = True
        if self.runs[-1] and any(opening in text for opening in _OPENINGS):
            self.runs.append("")
        left_text, _, right_text = text.partition("=")
        found, value = _LEFT.search(left_text), _VALUE.match(right_text)
        if found is None or value is None or "=" in right_text:
            self.places = frozenset()
            return False
        if any(script.detour in text for script in _SCRIPTS):
            return _true_sum(found.group(), value.group(), self.numbers)
        self.runs[-1] = value.group()
        onward, anew = (self._after(places, found.group(), value.group()) for places in (self.places, START))
        self.places = onward or anew
        ends = {("steps", len(self.solution.steps)), ("terms", len(self.solution.terms))}
        self.complete |= bool(self.places & ends)
        return bool(self.places)

    def _after(self, places: frozenset[Place], left: str, value: str) -> frozenset[Place]:
        led = (self.moves.get(place, {}).get(left) for place in places)
        return frozenset(move[1] for move in led if move is not None and move[0] == value)

    def claim(self, text: str) -> bool:
        """Right when a whole, right solution stands above it, and ends in this value."""
        self.stated = True
        found = _CLAIM.search(text)
        return found is not None and self.complete and str(self.solution.value) in found.groups()

    def verdict(self, text: str) -> bool:
        self.stated = True
        differ = any(script.different in text for script in _SCRIPTS)
        return len(self.runs) > 1 and (self.runs[-1] != self.runs[-2]) is differ

    def answer(self, text: str) -> bool:
        """As a claim; an answer that stands alone is right when it is the problem's."""
        right = extract_answer(text, require_think_closed=True) == str(self.solution.value)
        return right and (self.complete or not self.stated)

    def unfinished(self, text: str) -> bool:
        return False


def _true_sum(left: str, value: str, numbers: frozenset[str]) -> bool:
    """A detour, which leads nowhere and so need only be true and about numbers of the question."""
    found = _SUM.fullmatch(left)
    if found is None or len(left) > _LONGEST_NUMBER:
        return False
    return str(int(found[1]) + int(found[2])) == value and set(found.groups()) <= numbers


def check_steps(problem: Problem, steps: Sequence[WrittenStep]) -> list[bool]:
    """Whether each step is right; raises DataError for a problem that the default world cannot solve."""
    if not solvable(problem):
        raise DataError(
            f"problem {problem.id}: got family {problem.metadata.get('family')!r}, "
            f"wanted one that the step checker can solve: {', '.join(sorted(SOLVERS))}"
        )
    solution = solve(problem)
    page = _Page(solution, frozenset(_NUMBER.findall(problem.prompt)), routes(solution))
    rules: dict[Kind, Callable[[str], bool]] = {
        "equation": page.equation,
        "claim": page.claim,
        "verdict": page.verdict,
        "answer": page.answer,
        "unfinished": page.unfinished,
    }
    return [rules[step.kind](step.text) for step in steps]


def checked_steps(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, response_ids: Sequence[int]
) -> list[StepReward]:
    """1 for every right step of a response and 0 for every wrong one."""
    steps = split_steps(tokenizer, response_ids)
    return [StepReward(step.end, float(right)) for step, right in zip(steps, check_steps(problem, steps), strict=True)]


def worst_step(rewards: Sequence[float]) -> float:
    """A chain is as good as its weakest step."""
    return min(rewards)


def product_of_steps(rewards: Sequence[float]) -> float:
    """Every step right, if they were independent; long responses score lower."""
    return math.prod(rewards)


def mean_step(rewards: Sequence[float]) -> float:
    """Forgives a bad step the more, the longer the response."""
    return sum(rewards) / len(rewards)


def last_step(rewards: Sequence[float]) -> float:
    """Right for labels that are values of prefixes; forgives what was mended later."""
    return rewards[-1]


AGGREGATIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": worst_step,
    "product": product_of_steps,
    "mean": mean_step,
    "last": last_step,
}
"""One score of a response from those of its steps, of which there is at least one."""
