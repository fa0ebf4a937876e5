r"""Taking a response apart: thinking, answer, and the result.

A result counts only behind the closed think block, and only the last balanced `\boxed{...}` counts: a response that
lists many candidates has chosen its last one. Text is read once from left to right, so that no response, however
strange, costs more than its length. Programs stand in a fenced block, and where the form of the answer itself is judged
(verifier `constraint`) the result is all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from posttrain.chat.template import END_OF_TEXT, THINK_CLOSE, THINK_OPEN, TURN_END, TURN_START
from posttrain.records import Mode

AnswerForm = Literal["box", "code", "text"]

_BOX = "\\boxed{"
_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_AFTER_BOX = re.compile(r"[\s.$]*(?:\\[)\]][\s.$]*)?")


@dataclass(frozen=True, slots=True)
class Parts:
    """A response in pieces."""

    thinking: str | None
    """Between the think tags, stripped; empty when thinking was skipped; None without a block that opens and closes."""
    answer: str
    """What follows the last closing tag, stripped; the whole text without one."""
    well_formed: bool
    """Whether the response has the form of its mode, see `split_response`."""


def answer_form(verifier: str) -> AnswerForm:
    """The form in which answers to a verifier's problems are given."""
    return "code" if verifier == "code" else "text" if verifier == "constraint" else "box"


def written(answer: str, form: AnswerForm) -> str:
    """How an answer is given after thinking: what `extract_answer` finds again."""
    if form == "code":
        return f"```python\n{answer}\n```"
    return answer if form == "text" else f"{_BOX}{answer}}}"


def split_response(text: str, mode: Mode = "think", form: AnswerForm = "box") -> Parts:
    r"""Thinking and answer of a decoded response, end-of-turn token included or not.

    Well-formed in mode `think`: one non-empty think block at the start, then an answer with one `\boxed{...}` and at
    most closing punctuation behind it (form `code`: with one fenced block; form `text`: any). In mode `no_think` the
    block is empty, or absent because the prompt holds it.
    """
    text = _without_end(text)
    head, closed, answer = text.rpartition(THINK_CLOSE)
    opens, closes = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    thinking = None
    if closed and THINK_OPEN in head:
        thinking = head.split(THINK_OPEN, 1)[1].strip()
    starts = head.lstrip().startswith(THINK_OPEN)
    single = opens == 1 and closes == 1 and starts
    block = single and bool(thinking) if mode == "think" else (single and thinking == "") or opens + closes == 0
    clean = TURN_START not in text and TURN_END not in text and END_OF_TEXT not in text
    return Parts(thinking, answer.strip(), block and clean and _has_form(answer, form))


def extract_answer(text: str, *, require_think_closed: bool, form: AnswerForm = "box") -> str | None:
    r"""What is judged, behind the last `</think>`; None when there is none.

    The content of the last balanced `\boxed{...}`, stripped; in form `code` that of the last fenced block, in form
    `text` all of it. With `require_think_closed` a response that never closed its think block has no answer.
    """
    _, closed, answer = text.rpartition(THINK_CLOSE)
    if require_think_closed and not closed:
        return None
    if form == "text":
        return _without_end(answer).strip() or None
    if form == "code":
        blocks = _FENCED.findall(_without_end(answer))
        return str(blocks[-1]).strip("\n") if blocks else None
    boxes = _boxes(answer)
    if not boxes:
        return None
    start, end = boxes[-1]
    return answer[start:end].strip()


def _without_end(text: str) -> str:
    return text.strip().removesuffix(TURN_END).removesuffix(END_OF_TEXT)


def _has_form(answer: str, form: AnswerForm) -> bool:
    if form == "box":
        return _one_final_box(answer)
    return len(_FENCED.findall(answer)) == 1 if form == "code" else bool(answer.strip())


def _one_final_box(answer: str) -> bool:
    boxes = _boxes(answer)
    if len(boxes) != 1 or answer.count(_BOX) != 1:
        return False
    return _AFTER_BOX.fullmatch(answer, boxes[0][1] + 1) is not None


def _boxes(text: str) -> list[tuple[int, int]]:
    """(start, end) of the contents of the outermost balanced boxes, left to right; escaped braces do not count."""
    boxes: list[tuple[int, int]] = []
    open_braces: list[tuple[int, bool]] = []  # (content start, opened by a box)
    position = 0
    while position < len(text):
        if text.startswith(_BOX, position):
            position += len(_BOX)
            open_braces.append((position, True))
            continue
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == "{":
            open_braces.append((position + 1, False))
        elif character == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box:
                while boxes and boxes[-1][0] > start:
                    boxes.pop()
                boxes.append((start, position))
        position += 1
    return boxes
