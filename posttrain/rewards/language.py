r"""Language consistency of a chain of thought, by script (DeepSeek-R1, arXiv 2501.12948, section 2.3.2).

The share of words in the language of the question. Words are counted by writing system: each Han, kana or Hangul
character is one word, each run of letters of another script is one; digits, symbols and LaTeX are nobody's. Languages
that share a script are not told apart, which is the price of needing no language identifier.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

_LATEX = re.compile(r"\$[^$]*\$|\\[A-Za-z]+")
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"))


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
