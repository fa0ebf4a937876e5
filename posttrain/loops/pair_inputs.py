"""Preference pairs on their way into training: as token ids.

A pair made of samples has the ids that were sampled; one that a person wrote is tokenised, and its turn ended, here.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import TURN_END, encode_text, render_prompt
from posttrain.engine.packing import Response
from posttrain.records import Message, Pair


def pair_ids(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> tuple[Response, Response]:
    """Chosen and rejected response with their prompt: the ids that were sampled, or the text's where there are none."""
    prompt = pair.prompt_ids or tuple(render_prompt(tokenizer, [Message("user", pair.prompt)], "think"))
    chosen, rejected = (
        ids or tuple(encode_text(tokenizer, text.removesuffix(TURN_END) + TURN_END))
        for ids, text in ((pair.chosen_ids, pair.chosen), (pair.rejected_ids, pair.rejected))
    )
    return (prompt, chosen), (prompt, rejected)
