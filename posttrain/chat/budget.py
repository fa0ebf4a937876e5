"""Thinking budgets: stop a thought after a number of tokens and ask for the answer (Qwen3 report, section 4.3).

A sampled thought, cut after `budget` tokens, is what early stopping would have produced: one set of samples serves
every budget, and only the answers are sampled anew. Nobody is trained for it; it comes with learning both modes.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import EMPTY_BLOCK, THINK_CLOSE, THINK_OPEN, encode_text, special_id

STOP_INSTRUCTION = "\n\nTime is limited, so the answer is given from the thinking so far."


@dataclass(frozen=True, slots=True)
class StopTokens:
    """Token ids that a budget needs, looked up once."""

    open_id: int
    close_id: int
    stop_ids: tuple[int, ...]
    """The instruction, the closing tag and the blank line before the answer; never sampled, so never trained on."""
    empty_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BudgetPrompt:
    """What to sample from, or that nothing has to be."""

    prompt_ids: tuple[int, ...]
    """Prompt, kept thinking and what was inserted, from where the answer is sampled; without a stop the bare prompt."""
    kept: int
    """Thinking tokens kept."""
    inserted: int
    """Tokens at the end of `prompt_ids` that nobody sampled."""
    forced_stop: bool
    """False: the response closed its thought within the budget and stands as it is."""


def stop_tokens(tokenizer: PreTrainedTokenizerFast, instruction: str = STOP_INSTRUCTION) -> StopTokens:
    """The ids of a tokenizer; another instruction may suit a model that was trained with one."""
    return StopTokens(
        special_id(tokenizer, THINK_OPEN),
        special_id(tokenizer, THINK_CLOSE),
        tuple(encode_text(tokenizer, f"{instruction}\n{THINK_CLOSE}\n\n")),
        tuple(encode_text(tokenizer, EMPTY_BLOCK)),
    )


def build_budget_prompt(
    prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], *, budget: int, tokens: StopTokens
) -> BudgetPrompt:
    """Stop the thinking of a sampled response after `budget` tokens, counted between the think tags.

    Budget 0 is the empty think block. A thought that was never closed is stopped wherever it ends.
    """
    if budget == 0:
        return BudgetPrompt(prompt_ids + tokens.empty_ids, 0, len(tokens.empty_ids), True)
    start = response_ids.index(tokens.open_id) + 1 if tokens.open_id in response_ids else 0
    if tokens.close_id in response_ids[start:]:
        if response_ids.index(tokens.close_id, start) - start <= budget:
            return BudgetPrompt(prompt_ids, response_ids.index(tokens.close_id, start) - start, 0, False)
    elif start == 0:
        # Answered without any thought: there is nothing to stop.
        return BudgetPrompt(prompt_ids, 0, 0, False)
    kept = response_ids[: start + budget]
    return BudgetPrompt(prompt_ids + kept + tokens.stop_ids, len(kept) - start, len(tokens.stop_ids), True)
