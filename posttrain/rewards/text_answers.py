"""Answers that are short texts: the very text, or the label of an option."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.records import RIGHT, WRONG, DataError, Problem, Verdict

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# `B`, `(b)`, `B.`, `[B]:`, and the same with text behind a bracket, a full stop or a colon.
_LABEL = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[)\].:]+\s*(.*))?", re.DOTALL)
_SEVERAL = re.compile(r"\s*(?:,|;|&|\band\b)\s*")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{(.*)\}", re.DOTALL)


def exact_verdict(problem: Problem, answer: str) -> Verdict:
    """Equal text, up to runs of white space."""
    return RIGHT if answer.split() == problem.answer.split() else WRONG


def choice_verdict(problem: Problem, answer: str) -> Verdict:
    """The same option, or the same set of options: by label (`B`, `(b)`, `B. text`, `A, C`) or by an option's own text.

    `metadata.choices` may list the options' texts, the first one being A; without it only labels count. Options that
    are no list of texts, or a gold answer that is none of them, raise DataError.
    """
    choices = problem.metadata.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"problem {problem.id}: field 'metadata.choices': got {choices!r:.80}, wanted: a list of texts")
    gold = chosen(problem.answer, choices)
    if not gold:
        raise DataError(
            f"problem {problem.id}: field 'answer': got {problem.answer[:80]!r}, wanted: a label, several labels with "
            "commas, or the text of an option"
        )
    return RIGHT if chosen(answer, choices) == gold else WRONG


def chosen(text: str, choices: Sequence[str]) -> frozenset[str]:
    """The labels that a text names; empty where it names none, or one that is no option's."""
    text = text.strip().strip("$").strip()
    if wrapped := _WRAPPER.fullmatch(text):
        text = wrapped[1].strip()
    texts = [_plain(choice) for choice in choices]
    if texts.count(_plain(text)) == 1:
        return frozenset(LABELS[texts.index(_plain(text))])
    labels = [_label(part, texts) for part in (_SEVERAL.split(text) if _only_labels(text) else [text])]
    return frozenset() if "" in labels else frozenset(labels)


def _only_labels(text: str) -> bool:
    return all(re.fullmatch(r"[(\[]?[A-Za-z][)\].]?", part) for part in _SEVERAL.split(text))


def _label(text: str, texts: Sequence[str]) -> str:
    """The label; nothing where there is none, or where the text beside it is another option's."""
    found = _LABEL.fullmatch(text)
    if found is None:
        return ""
    label, said = found[1].upper(), _plain(found[2] or "")
    if texts and LABELS.index(label) >= len(texts):
        return ""
    contradicts = said in texts and texts[LABELS.index(label)] != said
    return "" if contradicts else label


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
