"""The reward model of stage `reward_model` as a reward term.

It scores the very ids that were sampled, prompt included, at the last token of the response; one that was cut off is
scored where it stops. Raw Bradley-Terry scores: only their differences mean anything, and a policy that is optimised
against them long enough finds where they are wrong (arXiv 2210.10760). Watch a reward that the model does not give.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from posttrain.loops.reward_scores import score_responses
from posttrain.rewards.terms import Group
from posttrain.rewards.total import Scorer


def learned_scorer(model: PreTrainedModel, *, micro_batch_tokens: int) -> Scorer:
    """The term `learned`: the model's score of every response, all prompts of a step together."""

    def learned(groups: Sequence[Group]) -> list[list[float]]:
        flat = [(group.prompt_ids, sample.response_ids) for group in groups for sample in group.samples]
        rewards = iter(score_responses(model, flat, micro_batch_tokens=micro_batch_tokens))
        return [[next(rewards) for _ in group.samples] for group in groups]

    return learned
