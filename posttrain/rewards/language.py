r"""Language of a chain of thought, by one of two detectors (DeepSeek-R1, arXiv 2501.12948, section 2.3.2).

*By script*: the share of words in the writing system of the question. Each Han, kana or Hangul character is one word,
each run of letters of another script is one; digits, symbols and LaTeX are nobody's. It needs one word to see a
mixture and no model, but does not tell languages of one script apart.

*By identifier* (py3langid): the share of words in sentences that are identified as the question's language. It tells
English from German, and needs about a sentence to do so: a single foreign word inside one goes unseen.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

LEAST_LETTERS = 20
"""A shorter text has no language that an identifier could tell."""

_LATEX = re.compile(r"\$[^$]*\$|\\[A-Za-z]+")
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"))
# Bounded, so that openings without an end (a response may be nothing else) cost no more than their length.
_NO_PROSE = re.compile(
    r"```.{0,4000}?(?:```|\Z)|`[^`\n]{0,400}`"  # code
    r"|\$\$.{0,800}?\$\$|\$[^$\n]{0,400}\$|\\\[.{0,800}?\\\]|\\\(.{0,400}?\\\)"  # formulas
    r"|\\begin\{(\w{1,20}\*?)\}.{0,800}?\\end\{\1\}|\\[A-Za-z]+(?:\{[^{}\n]{0,400}\})*"
    r"|\d+",
    re.DOTALL,
)
_SENTENCE = re.compile(r"[^\n.!?\u3002\uff01\uff1f]+")


@cache
def script_of(character: str) -> str | None:
    """`latin`, `cyrillic`, `cjk`, ... for a letter; None for anything else."""
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "UNKNOWN").split()[0]
    return "cjk" if first in _EAST_ASIAN else first.lower()


def count_words(text: str) -> Counter[str]:
    """Number of words per script."""
    words: Counter[str] = Counter()
    previous: str | None = None
    for character in _LATEX.sub(" ", text):
        script = script_of(character)
        if script is not None and (script == "cjk" or script != previous):
            words[script] += 1
        previous = script
    return words


def main_script(text: str) -> str:
    """Script of most words; `latin` for a text without words."""
    words = count_words(text)
    return max(sorted(words), key=words.__getitem__) if words else "latin"


def consistency(thinking: str, *, target: str) -> float:
    """Share of words of script `target`, in [0, 1]; 0 without any word."""
    words = count_words(thinking)
    return words[target] / words.total() if words else 0.0


def is_mixed(thinking: str, *, target: str) -> bool:
    """Whether any word is of another script than `target`."""
    return bool(set(count_words(thinking)) - {target})


def prose(text: str) -> str:
    """The text without code, formulas and digits, which an identifier would take for some language."""
    return _NO_PROSE.sub(" ", text)


def letters(text: str) -> int:
    """Number of letters."""
    return sum(character.isalpha() for character in text)


def identify(text: str) -> str | None:
    """ISO 639 code of the language of a text's prose; None for fewer than LEAST_LETTERS letters."""
    plain = prose(text)
    if letters(plain) < LEAST_LETTERS:
        return None
    # Imported here: loading its model takes longer than all else in this module, and few runs name the detector.
    from py3langid import classify

    return str(classify(" ".join(plain.split()))[0])


def passages(text: str) -> list[str]:
    """The prose in runs of whole sentences of at least LEAST_LETTERS letters; none where there are fewer in all."""
    runs: list[str] = []
    pending: list[str] = []
    held = 0
    for sentence in map(str.strip, _SENTENCE.findall(prose(text))):
        if count := letters(sentence):
            pending.append(sentence)
            held += count
        if held >= LEAST_LETTERS:
            runs.append(" ".join(pending))
            pending, held = [], 0
    if runs:
        runs[-1] = " ".join([runs[-1], *pending])
    return runs


def identity(thinking: str, *, target: str) -> float | None:
    """Share of words in passages of language `target`, in [0, 1]; None where the text is too short to tell."""
    words = [(count_words(run).total(), identify(run) == target) for run in passages(thinking)]
    total = sum(count for count, _ in words)
    return sum(count for count, same in words if same) / total if total else None
