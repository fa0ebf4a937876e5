"""How far a policy has gone from its reference, on given responses: over the whole vocabulary at every token.

Less noise than the log-ratio of the sampled token alone, and never negative. With responses that the policy sampled,
the mean over them estimates KL(policy || reference) in nats per response.

Shapes: B responses, T tokens (prompt and response), N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from posttrain.engine.batching import micro_batches
from posttrain.engine.policy import wanted_logits
from posttrain.loops.scoring import Response, response_length, response_mask
from posttrain.losses.distill import reverse_kl
from posttrain.losses.policy import entropy


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of one response, summed over its tokens, in nats."""

    kl: float
    """KL(policy || reference)."""
    entropy: float
    """Of the policy."""


def divergences(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    responses: Sequence[Response],
    *,
    temperature: float,
    micro_batch_tokens: int,
) -> list[Divergence]:
    """In the order of `responses`; both models on one device."""
    found = [Divergence(0.0, 0.0)] * len(responses)
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        ids_BT, mask_BT = (part.to(policy.device) for part in response_mask([responses[i] for i in indices]))
        with torch.no_grad():
            policy_NV = wanted_logits(policy, ids_BT, mask_BT) / temperature
            reference_NV = wanted_logits(reference, ids_BT, mask_BT) / temperature
        sizes = mask_BT.sum(1).tolist()
        kl_B = reverse_kl(policy_NV, reference_NV).split(sizes)
        entropy_B = entropy(torch.log_softmax(policy_NV, dim=-1)).split(sizes)
        for index, kl_T, entropy_T in zip(indices, kl_B, entropy_B, strict=True):
            found[index] = Divergence(float(kl_T.sum()), float(entropy_T.sum()))
    return found
