"""Filters that look at one row at a time: its form, its gold answer, and whether it can be guessed.

Kimi k1.5 (arXiv 2501.12599, sec. 2.1) leaves out multiple choice, true/false and proof questions, whose right answers
come too easily or cannot be checked, and every prompt that is answered right without any reasoning within N guesses.
Each filter returns, per row, None or the reason why it goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from posttrain.records import DataError, Problem, Verdict

Verify = Callable[[Problem, str | None], Verdict]

EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer"
MULTIPLE_CHOICE = "multiple choice"
TRUE_FALSE = "true/false question"
PROOF = "asks for a proof"
GOLD_WRONG = "gold answer fails its own verifier"
GOLD_UNVERIFIED = "gold answer cannot be verified"
GUESSABLE = "guessed without reasoning"

_BINARY = frozenset({"true", "false", "yes", "no", "correct", "incorrect"})
_LABEL = re.compile(r"(?:^|(?<=\s))[(\[]?([A-Ja-j])[)\].:](?=\s)")
_LABEL_ANSWER = re.compile(r"[(\[]?([A-Ja-j])(?:[)\].:](?:\s.*)?)?", re.DOTALL)
_CHOICE = re.compile(
    r"\bwhich (?:one )?of the following\b|\bmultiple[- ]choice\b"
    r"|\b(?:choose|select|pick) (?:the|one|all)\b[^.?!\n]*\b(?:option|answer|choice|apply)",
    re.IGNORECASE,
)
_PROOF_ORDER = re.compile(
    r"(?:^|[.!?;:,]\s+|\n\s*)(?:please |then |now |hence )?"
    r"(?:prove\b|disprove\b|show that\b|demonstrate that\b|(?:give|write|provide) a (?:\w+ )?proof\b)",
    re.IGNORECASE,
)
_PROOF_WORDS = re.compile(r"\b(?:prove or disprove|prove that|proof of)\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[\d.,/]+%?")


def empty(problems: Sequence[Problem]) -> list[str | None]:
    """Rows with nothing to ask or nothing to check against."""
    return [EMPTY_PROMPT if not p.prompt.strip() else EMPTY_ANSWER if not p.answer.strip() else None for p in problems]


def question_types(problems: Sequence[Problem]) -> list[str | None]:
    """Multiple choice, true/false and proof questions, by prompt and answer.

    A row that names the verifier `choice` is a multiple-choice question on purpose and stays.
    """
    return [None if p.verifier == "choice" else question_type(p.prompt, p.answer) for p in problems]


def question_type(prompt: str, answer: str) -> str | None:
    """Which excluded type a question is of; None for one with a free, checkable answer."""
    if answer.strip().strip(".").casefold() in _BINARY:
        return TRUE_FALSE
    if _is_multiple_choice(prompt, answer.strip()):
        return MULTIPLE_CHOICE
    # A story may say "to prove that ..." and then ask for a number; an order to prove is one whatever the answer.
    is_number = _NUMBER.fullmatch(answer.strip()) is not None
    if _PROOF_ORDER.search(prompt) or (_PROOF_WORDS.search(prompt) and not is_number):
        return PROOF
    return None


def _is_multiple_choice(prompt: str, answer: str) -> bool:
    if _CHOICE.search(prompt):
        return True
    options = _options(prompt)
    label = _LABEL_ANSWER.fullmatch(answer)
    return (label is not None and label[1].upper() in options) or answer.casefold() in options.values()


def _options(prompt: str) -> dict[str, str]:
    """Label -> option text, when the prompt lists at least A and B in this order; otherwise empty."""
    marks = list(_LABEL.finditer(prompt))
    labels = [mark[1].upper() for mark in marks]
    if len(labels) < 2 or labels != list("ABCDEFGHIJ"[: len(labels)]):
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    return {
        label: prompt[mark.end() : end].strip(" \n\t,;").casefold()
        for label, mark, end in zip(labels, marks, ends, strict=True)
    }


def gold_answers(problems: Sequence[Problem], verify: Verify) -> list[str | None]:
    """Rows whose own gold answer does not pass: no sampled answer could, and the reward would be noise."""
    reason = {"correct": None, "wrong": GOLD_WRONG, "unverified": GOLD_UNVERIFIED}
    return [reason[verify(problem, problem.answer).status] for problem in problems]


def guessable(
    problems: Sequence[Problem], guesses: Mapping[str, Sequence[str | None]], verify: Verify
) -> list[str | None]:
    """Rows of which any guess is right; `guesses` maps problem id to the answers given without reasoning (N = 8 there).

    A problem that is guessed with probability p goes with probability 1 - (1 - p)^N. A guess that could not be
    verified is no right guess. A problem without guesses raises DataError: it would pass unexamined.
    """
    if missing := [problem.id for problem in problems if not guesses.get(problem.id)]:
        raise DataError(
            f"guesses: field '{missing[0]}': missing for {len(missing)} problems; wanted: at least one each"
        )
    return [
        GUESSABLE if any(verify(problem, guess).status == "correct" for guess in guesses[problem.id]) else None
        for problem in problems
    ]
