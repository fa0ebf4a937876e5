"""What became of a policy: accuracy and lengths against the model it started from, divergence and entropy.

Shapes: R bootstrap draws, Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from posttrain.evals.intervals import paired_difference, resample
from posttrain.evals.rows import ModeSamples
from posttrain.evals.suite import Tokens, average, question_accuracy
from posttrain.loops.divergence import divergences
from posttrain.loops.rl_step import token_ids
from posttrain.records import Rollout


def outcome(
    samples: Sequence[ModeSamples], before: Sequence[ModeSamples], *, bootstrap: int, seed: int
) -> dict[str, Any]:
    """Both models' accuracy with its interval and lengths, and the difference question by question.

    Intervals are 95 % percentile bootstraps over questions, all from the same draws.
    """
    counts_RQ = resample(len(samples), draws=bootstrap, seed=seed)
    gap = paired_difference(question_accuracy(samples), question_accuracy(before), counts_RQ)
    sides = {}
    for name, side in (("end", samples), ("sft", before)):
        tokens = Tokens(side)
        sides[name] = {
            "accuracy": average(side, counts_RQ, "think").to_json(),
            "tokens_correct": tokens.mean(lambda flag: flag is True),
            "tokens_wrong": tokens.mean(lambda flag: flag is False),
        }
    return sides | {"difference": gap.to_json()}


def divergence(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    temperature: float,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """KL(policy || reference) in nats per response and entropy of the policy in nats per token, on its own samples.

    Both over the whole vocabulary at each sampled token: less noise than the log-ratio of that token alone.
    """
    found = divergences(
        policy,
        reference,
        [token_ids(rollout) for rollout in rollouts],
        temperature=temperature,
        micro_batch_tokens=micro_batch_tokens,
    )
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return {
        "kl": sum(one.kl for one in found) / len(found),
        "entropy": sum(one.entropy for one in found) / tokens,
    }
