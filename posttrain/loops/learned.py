"""The reward model of stage `reward_model` as a reward term.

It scores the very ids that were sampled, prompt included, at the last token of the response; one that was cut off is
scored where it stops. Raw Bradley-Terry scores: only their differences mean anything, and a policy that is optimised
against them long enough finds where they are wrong (arXiv 2210.10760). Watch a reward that the model does not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.engine.batching import micro_batches, pad
from posttrain.engine.policy import DTYPES, Precision
from posttrain.errors import ModelError
from posttrain.loops.reward_model import ScoreBatch, scores
from posttrain.loops.scoring import Response, response_length
from posttrain.rewards.terms import Group
from posttrain.rewards.total import Scorer


def load_reward_model(folder: Path, tokenizer: PreTrainedTokenizerFast, *, precision: Precision) -> PreTrainedModel:
    """The classifier of a folder, in evaluation mode and without gradients, for responses in `tokenizer`'s ids.

    Raises ModelError where there is none, where it has not one label, or where its vocabulary is another.
    """
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=DTYPES[precision], output_loading_info=True
        )
        own = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a reward model: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: no weights for {missing[0]}; wanted: a model of stage reward_model")
    if model.config.num_labels != 1:
        raise ModelError(f"{folder}: got {model.config.num_labels} labels, wanted 1: a reward")
    if own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(f"{folder}: its tokenizer is not the policy's, wanted: the same vocabulary")
    return model.requires_grad_(False).eval()


def learned_scorer(model: PreTrainedModel, *, micro_batch_tokens: int) -> Scorer:
    """The term `learned`: the model's score of every response, all prompts of a step together."""

    def learned(groups: Sequence[Group]) -> list[list[float]]:
        flat = [(group.prompt_ids, sample.response_ids) for group in groups for sample in group.samples]
        rewards = iter(score_responses(model, flat, micro_batch_tokens=micro_batch_tokens))
        return [[next(rewards) for _ in group.samples] for group in groups]

    return learned


def score_responses(model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int) -> list[float]:
    """Rewards in the order of `responses`, without gradient."""
    rewards = [0.0] * len(responses)
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        ids_BT, mask_BT = pad([prompt + response for prompt, response in (responses[i] for i in indices)])
        batch = ScoreBatch(ids_BT.to(model.device), (mask_BT.sum(1) - 1).to(model.device))
        with torch.no_grad():
            rewards_B = scores(model, batch)
        for index, reward in zip(indices, rewards_B.tolist(), strict=True):
            rewards[index] = reward
    return rewards
