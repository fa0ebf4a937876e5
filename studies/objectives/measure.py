"""What became of a policy: accuracy and lengths against the model it started from, divergence and entropy.

Shapes: B responses, T tokens (prompt and response), N response tokens, V vocabulary, R bootstrap draws, Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain.engine.batching import micro_batches
from posttrain.engine.policy import wanted_logits
from posttrain.evals.intervals import paired_difference, resample
from posttrain.evals.rows import ModeSamples
from posttrain.evals.suite import Tokens, average, question_accuracy
from posttrain.loops.rl_step import token_ids
from posttrain.loops.scoring import response_length, response_mask
from posttrain.losses.distill import reverse_kl
from posttrain.losses.policy import entropy
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
    responses = [token_ids(rollout) for rollout in rollouts]
    kl = entropies = 0.0
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        ids_BT, mask_BT = (part.to(policy.device) for part in response_mask([responses[i] for i in indices]))
        with torch.no_grad():
            policy_NV = wanted_logits(policy, ids_BT, mask_BT) / temperature
            reference_NV = wanted_logits(reference, ids_BT, mask_BT) / temperature
        kl += float(reverse_kl(policy_NV, reference_NV).sum())
        entropies += float(entropy(torch.log_softmax(policy_NV, dim=-1)).sum())
    return {"kl": kl / len(responses), "entropy": entropies / sum(len(ids) for _, ids in responses)}
