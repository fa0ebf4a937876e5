"""Preference pairs on their way into training: as token ids, and refused where they cannot be learnt from.

A pair made of samples has the ids that were sampled; one that a person wrote is tokenised, and its turn ended, here.
What is refused would not fail by itself: it trains, and spoils the model or the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import (
    END_OF_TEXT,
    THINK_CLOSE,
    THINK_OPEN,
    TURN_END,
    encode_text,
    render_prompt,
    special_id,
)
from posttrain.loops.scoring import Response
from posttrain.records import DataError, Message, Pair


def pair_ids(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> tuple[Response, Response]:
    """Chosen and rejected response with their prompt: the ids that were sampled, or the text's where there are none."""
    prompt = pair.prompt_ids or tuple(render_prompt(tokenizer, [Message("user", pair.prompt)], "think"))
    chosen, rejected = (
        ids or tuple(encode_text(tokenizer, text.removesuffix(TURN_END) + TURN_END))
        for ids, text in ((pair.chosen_ids, pair.chosen), (pair.rejected_ids, pair.rejected))
    )
    return (prompt, chosen), (prompt, rejected)


def refuse_bad_pairs(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, *, file: Path | None) -> None:
    """Raise DataError where a pair, or the split, cannot be learnt from.

    `file` is what the pairs were read from, one per line in their order, and opens the message as `file:line`; None:
    they were made here, and the message names pair and problem.
    """
    ends = {special_id(tokenizer, token) for token in (TURN_END, END_OF_TEXT)}
    splits: dict[tuple[str, str], str] = {}
    for number, pair in enumerate(pairs, start=1):
        place = f"{file}:{number}: problem {pair.problem_id}" if file else f"pair {pair.id}: problem {pair.problem_id}"
        if fault := _fault(pair, ends):
            raise DataError(f"{place}: {fault}")
        for key in (("problem_id", pair.problem_id), ("prompt", pair.prompt)):
            if (other := splits.setdefault(key, pair.split)) != pair.split:
                raise DataError(
                    f"{place}: field 'split': got '{pair.split}', wanted '{other}' as for the other pairs of the same "
                    f"{key[0]}: what is trained on cannot be held out"
                )
    prompts = len({pair.prompt for pair in pairs if pair.split == "train"})
    if prompts < 2:
        raise DataError(f"{file or 'preferences'}: got pairs of {prompts} prompts to train on, wanted at least 2")


def is_empty(text: str) -> bool:
    """Whether a response, its special tokens included, says nothing before the end of its turn."""
    return not text.replace(TURN_END, "").replace(END_OF_TEXT, "").strip()


def _fault(pair: Pair, ends: set[int]) -> str | None:
    """What is wrong with a pair by itself."""
    responses = (("chosen", pair.chosen, pair.chosen_ids), ("rejected", pair.rejected, pair.rejected_ids))
    for name, text, ids in responses:
        if is_empty(text) or (ids and set(ids) <= ends):
            return f"field '{name}': got an empty response, wanted some text before the end of the turn"
    written = not pair.chosen_ids and not pair.rejected_ids
    # The turn of what was written is ended here: with and without its end it is the same text.
    texts = {text.removesuffix(TURN_END) if written else text for text in (pair.chosen, pair.rejected)}
    if len(texts) == 1:
        return "fields 'chosen' and 'rejected': got equal texts, wanted two responses"
    for name, text, ids in responses:
        if _is_truncated(text, ids, ends) and not _may_be_truncated(pair, name, text, ids):
            return f"field '{name}': got a truncated response, wanted one that ends its turn"
    return None


def _is_truncated(text: str, ids: Sequence[int], ends: set[int]) -> bool:
    """Whether sampled ids do not end a turn; of what was written, whether it stops within a thought."""
    if ids:
        return ids[-1] not in ends
    return THINK_OPEN in text and THINK_CLOSE not in text


def _may_be_truncated(pair: Pair, name: str, text: str, ids: Sequence[int]) -> bool:
    """What a sampler broke off is a fair example of what not to say, and may be chosen where noise swapped the labels.

    Not where the text has an end that its ids lack: those ids were cut off later.
    """
    swapped = pair.margin < 0
    return bool(ids) and not text.endswith((TURN_END, END_OF_TEXT)) and (name == "rejected" or swapped)
