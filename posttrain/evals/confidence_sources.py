r"""Where a confidence in an answer comes from: the answer's own tokens, or the model asked about it.

* token probability: exp of the mean log-probability of the answer's tokens, from the distribution at temperature 1;
* P(True): the model is shown the question with the answer, and `True` competes with `False` (arXiv 2207.05221);
* verbalised: it is asked for a number (arXiv 2305.14975); a reply without one has no confidence, which is not 0.

A model with chat habits is asked in its chat template, with thinking switched off; one without in the form of its
corpus. What is asked about is the answer alone, not the thought before it, so equal answers have equal replies.
Consistency over samples is posttrain.evals.calibration.split_half.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import SPECIAL_TOKENS, decode_ids, encode_text, prompt_text
from posttrain.records import Message

ASK_TRUE = "Is the proposed answer true or false?"
ASK_NUMBER = (
    "How likely is it that this answer is right? Reply with a probability between 0 and 1, in the form "
    "'Confidence: <probability>'."
)

_STATED = re.compile(
    r"confidence[\s*`\"']*(?:is|of)?[\s:=<(*`\"']*(\d*\.?\d+)(?!\d|\.\d)\s*(%?)(?!\s*(?:/|out of\b))", re.IGNORECASE
)


def answer_span(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], answer: str, *, last: bool) -> slice:
    r"""The tokens of a response that hold any of the content of its last (or first) `\boxed{answer}`.

    Tokens that share a character with the content count whole; of an empty box it is the closing brace. Raises
    ValueError where there is no such box.
    """
    text = decode_ids(tokenizer, ids)
    boxes = list(re.finditer(r"\\boxed\{\s*(" + re.escape(answer) + r")\s*\}", text))
    if not boxes:
        raise ValueError(f"answer {answer!r}: got no box with it in {text[-80:]!r}, wanted one")
    start, end = boxes[-1 if last else 0].span(1)

    def characters(place: int) -> int:
        return len(decode_ids(tokenizer, ids[: place + 1]))

    first = bisect_right(range(len(ids)), start, key=characters)
    return slice(first, bisect_left(range(len(ids)), max(end, start + 1), key=characters) + 1)


def token_confidence(logprobs: Sequence[float]) -> float:
    """Geometric mean of the probabilities of an answer's tokens, from their log-probabilities (nats)."""
    return math.exp(math.fsum(logprobs) / len(logprobs))


def p_true(true: float, false: float) -> tuple[float, float]:
    """(P(True) against P(False), probability of either word) from the log-probabilities (nats) of the two replies.

    Where the second is tiny the model would reply something else, and the first says little.
    """
    most = max(true, false)
    either = math.exp(true - most) + math.exp(false - most)
    return math.exp(true - most) / either, math.exp(most) * either


def true_prompt(tokenizer: PreTrainedTokenizerFast, question: str, answer: str, *, chat: bool) -> tuple[int, ...]:
    """What is asked for P(True); the replies are `true_replies`."""
    proposed = f"{question.strip()}\nProposed answer: {_own_words(answer)}\n{ASK_TRUE}"
    if chat:
        return _encode(tokenizer, prompt_text([Message("user", f"{proposed} Reply True or False.")], "no_think"))
    return _encode(tokenizer, f"Question: {proposed}\nAnswer:")


def true_replies(tokenizer: PreTrainedTokenizerFast, *, chat: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of the replies `True` and `False`."""
    space = "" if chat else " "
    return _encode(tokenizer, f"{space}True"), _encode(tokenizer, f"{space}False")


def number_prompt(tokenizer: PreTrainedTokenizerFast, question: str, answer: str, *, chat: bool) -> tuple[int, ...]:
    """What is asked for a verbalised confidence: a second turn after the answer."""
    box = f"\\boxed{{{_own_words(answer)}}}"
    if chat:
        turns = [Message("user", question), Message("assistant", box), Message("user", ASK_NUMBER)]
        return _encode(tokenizer, prompt_text(turns, "no_think"))
    return _encode(tokenizer, f"Question: {question.strip()}\nAnswer: {box}\n{ASK_NUMBER}\n")


def stated_confidence(reply: str) -> float | None:
    """The number in [0, 1] of `Confidence: 0.8` or `Confidence: 80 %`; None without one, or beyond these bounds."""
    found = _STATED.search(reply)
    if found is None:
        return None
    value = float(found[1]) / (100.0 if found[2] else 1.0)
    return value if value <= 1.0 else None


def _own_words(answer: str) -> str:
    """The answer as text that cannot open or close a turn."""
    for token in SPECIAL_TOKENS:
        answer = answer.replace(token, " ")
    return answer


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(encode_text(tokenizer, text))
