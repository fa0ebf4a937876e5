"""Text as it is kept, and text as it is compared.

`normalise` changes what is stored, and only what no reader can see. Comparison works on `words`: case, spacing and the
punctuation of prose do not count, numbers and operators do, because templated problems differ in nothing else.
`boilerplate` tells the sentences of a template from what makes a problem that problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from posttrain.records import Problem

Ngram = tuple[str, ...]

BOILERPLATE_ROWS = 20
"""Prompts that may share an n-gram before it can count as a template's."""
BOILERPLATE_SHARE = 0.005
"""Share of all prompts above which an n-gram counts as a template's, once it is in more than BOILERPLATE_ROWS."""

# Control and zero-width characters; tab and newline stay, and so do the joiners that scripts such as Persian need.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\u00ad]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
# A line of symbols alone (a drawing, whose spaces count), a number, a character of a script that writes no spaces, a
# word, or a single symbol.
_TOKEN = re.compile(
    "(?m:^(?=.*\\S)(?:(?!\n)[\\W_]){3,}$)"
    "|\\d+(?:\\.\\d+)?"
    "|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"
    "|[^\\W\\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+"
    "(?:['\u2019-][^\\W\\d_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+)*"
    "|[^\\w\\s]|_"
)
_PROSE_MARKS = frozenset(".,;:!?\"'`\u2018\u2019\u201c\u201d\u3001\u3002\uff0c\uff01\uff1f")
_SENTENCE_ENDS = frozenset(".!?\u3002\uff01\uff1f")
_SAME_OPERATOR = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u22c5": "*", "\u00f7": "/"})
_OPERATORS = frozenset("+-*/^%=<>()|&~")


def normalise(text: str) -> str:
    """Text in Unicode NFC with plain spaces and line ends, without invisible characters or spaces at line ends.

    Spaces inside a line stay: grids and code mean something by them. NFKC is not used: it makes a superscript 2 a 2.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def normalised(problem: Problem) -> Problem:
    """The problem with prompt and answer normalised; its id stays."""
    return dataclasses.replace(problem, prompt=normalise(problem.prompt), answer=normalise(problem.answer))


def one_line(text: str) -> str:
    """Key of an exact duplicate: every run of white space is one space. Case counts ("spell Ab backward")."""
    return " ".join(text.split())


def words(text: str) -> Ngram:
    """What two prompts are compared by: case-folded words, numbers and symbols, without the punctuation of prose."""
    return words_and_ends(text)[0]


def words_and_ends(text: str) -> tuple[Ngram, frozenset[int]]:
    """The words of a text, and the places of those that a full stop, question or exclamation mark follows."""
    tokens: list[str] = []
    ends: set[int] = set()
    for token in _TOKEN.findall(unicodedata.normalize("NFC", text).translate(_SAME_OPERATOR).casefold()):
        if token not in _PROSE_MARKS:
            tokens.append(token)
        elif token in _SENTENCE_ENDS and tokens:
            ends.add(len(tokens) - 1)
    return tuple(tokens), frozenset(ends)


def is_arithmetic(token: str) -> bool:
    return token in _OPERATORS or token[0].isdigit()


def arithmetic(tokens: Sequence[str]) -> Ngram:
    """The numbers, operators and brackets in their order: prompts that differ here are different problems."""
    return tuple(token for token in tokens if is_arithmetic(token))


def ngrams(tokens: Ngram, n: int) -> frozenset[Ngram]:
    """Every run of n tokens; of fewer than n tokens, the one run there is."""
    if not tokens:
        return frozenset()
    return frozenset(tokens[start : start + n] for start in range(max(1, len(tokens) - n + 1)))


def boilerplate(grams: Iterable[frozenset[Ngram]]) -> frozenset[Ngram]:
    """The n-grams so common among the prompts that they say which template was used, not which problem was asked."""
    rows, counts = 0, Counter[Ngram]()
    for row in grams:
        rows += 1
        counts.update(row)
    most = max(BOILERPLATE_ROWS, BOILERPLATE_SHARE * rows)
    return frozenset(gram for gram, count in counts.items() if count > most)


def shuffled(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """The problems in a seeded order that depends on their content only, not on the order in which they came.

    One more row changes nobody else's place, so that growing a source moves few rows between the splits.
    """

    def place(problem: Problem) -> tuple[str, ...]:
        # Repeated rows share an id and may still differ in metadata (the gym counts its rows there).
        digest = hashlib.sha256(f"{seed}:{problem.id}".encode()).hexdigest()
        return digest, problem.source, problem.prompt, problem.answer, json.dumps(problem.metadata, sort_keys=True)

    return sorted(problems, key=place)
