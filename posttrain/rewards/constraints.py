"""Instructions about the form of an answer that a program can check, in the spirit of IFEval (arXiv 2311.07911).

A problem lists them as objects with a `kind` and what the kind needs: {"kind": "words", "at_least": 50}. All must hold
(IFEval's strict, prompt-level accuracy). Words are runs of letters, digits and the marks inside them; sentences end in
`.`, `!`, `?` or their full-width forms before white space or the end. What needs a language model to judge is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import ConfigDict, ValidationError, validate_call

from posttrain.records import RIGHT, WRONG, DataError, Problem, Verdict

_WORD = re.compile(r"[^\W_]+(?:['\u2019._-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+(?=[\s\"'\u201d)\]]|$)|[\u3002\uff01\uff1f]+")
_BULLET = re.compile(r"^[ \t]*[*\u2022-][ \t]+(?=\S)", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<[^<>\n]+>>")
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


def constraint_verdict(problem: Problem, answer: str) -> Verdict:
    """Right when every constraint of `metadata.constraints` holds; an answer of white space alone is wrong.

    No constraints, an unknown kind, or a field that is missing, unknown or of a wrong type raise DataError.
    """
    specs = problem.metadata.get("constraints")
    if not isinstance(specs, list) or not specs:
        raise DataError(
            f"problem {problem.id}: field 'metadata.constraints': got {specs!r:.80}, wanted: a list with a constraint"
        )
    text = answer.strip()
    held = [holds(spec, text, where=f"problem {problem.id}: constraint {n}") for n, spec in enumerate(specs, start=1)]
    return RIGHT if text and all(held) else WRONG


def holds(spec: object, text: str, *, where: str) -> bool:
    """Whether the text obeys one constraint; a spec that is none raises DataError that begins with `where`."""
    kind = spec.get("kind") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(kind, str) or kind not in CONSTRAINTS:
        raise DataError(f"{where}: field 'kind': got {kind!r}, wanted one of {', '.join(CONSTRAINTS)}")
    fields = {name: value for name, value in spec.items() if name != "kind"}
    try:
        return CONSTRAINTS[kind](text, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where} ({kind}): field '{name}': {first['msg']}, got {first['input']!r:.80}") from error
    except ValueError as error:
        raise DataError(f"{where} ({kind}): {error}") from error


def words(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    return _between(len(_WORD.findall(text)), at_least, at_most)


def sentences(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """A last sentence without its mark counts."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    rest = text[ends[-1] if ends else 0 :]
    return _between(len(ends) + (_WORD.search(rest) is not None), at_least, at_most)


def paragraphs(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Separated by blank lines."""
    return _between(sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text)), at_least, at_most)


def lines(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Lines that are not blank."""
    return _between(sum(bool(line.strip()) for line in text.splitlines()), at_least, at_most)


def bullets(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Lines that begin with `*`, `-` or a bullet, and a space."""
    return _between(len(_BULLET.findall(text)), at_least, at_most)


def highlights(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Parts between single or double asterisks, within a line."""
    return _between(len(_HIGHLIGHT.findall(_BULLET.sub(" ", text))), at_least, at_most)


def placeholders(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Parts in square brackets, such as [name]."""
    return _between(len(_PLACEHOLDER.findall(text)), at_least, at_most)


def keywords(text: str, *, words: list[str]) -> bool:
    """Every one occurs, as a whole word (or run of words), whatever its case."""
    return all(_occurrences(text, word) for word in _some(words))


def forbidden_words(text: str, *, words: list[str]) -> bool:
    """None of them occurs as a whole word, whatever its case."""
    return not any(_occurrences(text, word) for word in _some(words))


def keyword_count(text: str, *, word: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """How often one word occurs, whatever its case."""
    return _between(_occurrences(text, word), at_least, at_most)


def letter_count(text: str, *, letter: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """How often one letter occurs, whatever its case."""
    if len(letter) != 1:
        raise ValueError(f"field 'letter': got {letter!r}, wanted one character")
    return _between(text.casefold().count(letter.casefold()), at_least, at_most)


def case(text: str, *, of: Literal["upper", "lower"]) -> bool:
    """No letter of the other case; letters of scripts without cases are of both. At least one letter has a case."""
    return text.isupper() if of == "upper" else text.islower()


def capital_words(text: str, *, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Words written in capitals alone."""
    return _between(sum(word.isupper() for word in _WORD.findall(text)), at_least, at_most)


def no_commas(text: str) -> bool:
    return not re.search("[,\uff0c\u3001]", text)


def valid_json(text: str, *, keys: list[str] | None = None) -> bool:
    """The whole text, or the one fenced block that it consists of, is JSON; with `keys`, an object that has them."""
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= set(value))


def starts_with(text: str, *, phrase: str) -> bool:
    return text.startswith(_some_text(phrase))


def ends_with(text: str, *, phrase: str) -> bool:
    return text.endswith(_some_text(phrase))


def quoted(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    return len(text) > 1 and text[0] in '"\u201c' and text[-1] in '"\u201d'


def title(text: str) -> bool:
    """A title in double angle brackets, <<so>>."""
    return _TITLE.search(text) is not None


def postscript(text: str, *, marker: str) -> bool:
    """A line that begins with the marker (`P.S.`), with words behind it."""
    return re.search(rf"^[ \t]*{re.escape(_some_text(marker))}[ \t]*\S", text, re.MULTILINE) is not None


def sections(text: str, *, name: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Lines that begin with the name and a number: `Section 1`."""
    found = re.findall(rf"^[#* \t]*{re.escape(_some_text(name))}[ \t]+\d+", text, re.MULTILINE)
    return _between(len(found), at_least, at_most)


def _between(count: int, at_least: int | None, at_most: int | None) -> bool:
    if at_least is None and at_most is None:
        raise ValueError("field 'at_least': missing; wanted: at_least, at_most or both")
    return (at_least is None or count >= at_least) and (at_most is None or count <= at_most)


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(_some_text(word))}(?!\w)", text, re.IGNORECASE))


def _some(words: list[str]) -> list[str]:
    if not words:
        raise ValueError("field 'words': got none, wanted at least one")
    return words


def _some_text(phrase: str) -> str:
    if not phrase.strip():
        raise ValueError(f"a field's text: got {phrase!r}, wanted some")
    return phrase


_ALL: Mapping[str, Callable[..., bool]] = {
    "words": words,
    "sentences": sentences,
    "paragraphs": paragraphs,
    "lines": lines,
    "bullets": bullets,
    "highlights": highlights,
    "placeholders": placeholders,
    "sections": sections,
    "keywords": keywords,
    "forbidden_words": forbidden_words,
    "keyword_count": keyword_count,
    "letter_count": letter_count,
    "capital_words": capital_words,
    "case": case,
    "no_commas": no_commas,
    "json": valid_json,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "quoted": quoted,
    "title": title,
    "postscript": postscript,
}

CONSTRAINTS: Mapping[str, Callable[..., bool]] = {
    kind: validate_call(config=ConfigDict(strict=True))(function) for kind, function in _ALL.items()
}
"""Kind -> function of the text; the other arguments are the fields of the constraint, checked as pydantic checks."""
