r"""How a model is asked and how its responses are read: with chat habits, or as a pre-trained model without.

Both forms answer the same questions in the same two modes, so that a base model can stand in the same table: for it
"thinking" is the solution it writes before its first box, and not thinking is answering straight away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from posttrain.chat.budget import build_budget_prompt, stop_tokens
from posttrain.chat.split import answer_form, extract_answer, split_response
from posttrain.chat.template import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    THINK_CLOSE,
    THINK_OPEN,
    TURN_END,
    decode_ids,
    direct_prompt,
    encode_text,
    plain_prompt,
    render_prompt,
    special_id,
)
from posttrain.records import Message, Mode, Problem, Rollout
from posttrain.rewards.language import is_mixed, main_script

_BOX = "\\boxed{"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one response says."""

    text: str
    answer: str | None
    thinking_tokens: int
    well_formed: bool
    mixed: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """A thought stopped at a budget: what the answer is sampled from."""

    prompt_ids: tuple[int, ...]
    forced: bool
    """False: the response ended its thought within the budget and stands as it is."""


class Form(Protocol):
    stop_ids: tuple[int, ...]
    """Tokens that end a response."""

    def prompt(self, problem: Problem, mode: Mode) -> tuple[int, ...]:
        """Token ids to continue."""

    def flagged(self, problem: Problem, mode: Mode, *, contrary: bool) -> tuple[int, ...] | None:
        """The question with a flag that asks for `mode`, after a contrary one if told; None: knows no flags."""

    def read(self, problem: Problem, rollout: Rollout, mode: Mode) -> Reading:
        """The response in its parts."""

    def stop(self, rollout: Rollout, budget: int) -> Stop:
        """The early stop of a response in mode `think` after `budget` > 0 thinking tokens."""

    def read_forced(self, problem: Problem, rollout: Rollout) -> str | None:
        """The answer sampled after a stop."""

    def follows(self, rollout: Rollout, mode: Mode) -> bool:
        """Whether the think block is empty exactly when the flag asked for that; a missing block follows nothing.

        The start of a response is enough: a thought that has begun is one, closed or not.
        """


class ChatForm:
    """Chat template; mode `no_think` by the hard switch, so that a model that never learnt flags is asked the same."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._stop = stop_tokens(tokenizer)
        self.stop_ids: tuple[int, ...] = (special_id(tokenizer, TURN_END), special_id(tokenizer, END_OF_TEXT))

    def prompt(self, problem: Problem, mode: Mode) -> tuple[int, ...]:
        return self._turn(problem.prompt, mode)

    def flagged(self, problem: Problem, mode: Mode, *, contrary: bool) -> tuple[int, ...] | None:
        other = "no_think" if mode == "think" else "think"
        flags = [other, mode] if contrary else [mode]
        return self._turn(" ".join([problem.prompt, *(f"/{flag}" for flag in flags)]), "think")

    def read(self, problem: Problem, rollout: Rollout, mode: Mode) -> Reading:
        text = decode_ids(self._tokenizer, rollout.response_ids)
        form = answer_form(problem.verifier)
        parts = split_response(text, mode, form)
        return Reading(
            text=text,
            answer=extract_answer(text, require_think_closed=mode == "think", form=form),
            thinking_tokens=self._thinking_tokens(rollout.response_ids),
            well_formed=parts.well_formed,
            mixed=_mixed(problem, parts.thinking or parts.answer),
        )

    def stop(self, rollout: Rollout, budget: int) -> Stop:
        built = build_budget_prompt(rollout.prompt_ids, rollout.response_ids, budget=budget, tokens=self._stop)
        return Stop(built.prompt_ids, built.forced_stop)

    def read_forced(self, problem: Problem, rollout: Rollout) -> str | None:
        text = decode_ids(self._tokenizer, rollout.response_ids)
        return extract_answer(text, require_think_closed=False, form=answer_form(problem.verifier))

    def follows(self, rollout: Rollout, mode: Mode) -> bool:
        before, opened, rest = decode_ids(self._tokenizer, rollout.response_ids).partition(THINK_OPEN)
        if not opened or before.strip():
            return False
        thought, closed, _ = rest.partition(THINK_CLOSE)
        return bool(thought.strip()) if mode == "think" else bool(closed) and not thought.strip()

    def _turn(self, prompt: str, mode: Mode) -> tuple[int, ...]:
        return tuple(render_prompt(self._tokenizer, [Message("user", prompt)], mode))

    def _thinking_tokens(self, ids: tuple[int, ...]) -> int:
        """Tokens between the think tags; up to the end when the block was never closed; 0 without a block."""
        if self._stop.open_id not in ids:
            return 0
        start = ids.index(self._stop.open_id) + 1
        end = ids.index(self._stop.close_id, start) if self._stop.close_id in ids[start:] else len(ids)
        return end - start


class PlainForm:
    """The prompts of the pre-training corpus; the first box is the answer, since such a model may go on writing."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ask = tuple(encode_text(tokenizer, "\nAnswer:"))
        ends = {tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TEXT)} - {None}
        self.stop_ids: tuple[int, ...] = tuple(sorted(int(token) for token in ends))

    def prompt(self, problem: Problem, mode: Mode) -> tuple[int, ...]:
        build = plain_prompt if mode == "think" else direct_prompt
        return tuple(build(self._tokenizer, problem.prompt))

    def flagged(self, problem: Problem, mode: Mode, *, contrary: bool) -> tuple[int, ...] | None:
        return None

    def read(self, problem: Problem, rollout: Rollout, mode: Mode) -> Reading:
        text = decode_ids(self._tokenizer, rollout.response_ids)
        before = self._before_box(rollout.response_ids) if mode == "think" else 0
        return Reading(text, self._first_box(text), before, False, _mixed(problem, text))

    def stop(self, rollout: Rollout, budget: int) -> Stop:
        if self._before_box(rollout.response_ids) <= budget:
            return Stop(rollout.prompt_ids, False)
        return Stop(rollout.prompt_ids + rollout.response_ids[:budget] + self._ask, True)

    def read_forced(self, problem: Problem, rollout: Rollout) -> str | None:
        return self._first_box(decode_ids(self._tokenizer, rollout.response_ids))

    def follows(self, rollout: Rollout, mode: Mode) -> bool:
        return False

    def _first_box(self, text: str) -> str | None:
        before, box, rest = text.partition(_BOX)
        return extract_answer(before + box + rest.split(_BOX, 1)[0], require_think_closed=False)

    def _before_box(self, ids: tuple[int, ...]) -> int:
        """Tokens before the first box is open, by bisection: once open, a box stays in every longer prefix."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if _BOX in decode_ids(self._tokenizer, ids[: middle + 1]):
                high = middle
            else:
                low = middle + 1
        return low


def _mixed(problem: Problem, words: str) -> bool:
    """Whether there are words of another script than that of the question; special tokens are nobody's words."""
    for token in SPECIAL_TOKENS:
        words = words.replace(token, " ")
    return is_mixed(words, target=main_script(problem.prompt))
