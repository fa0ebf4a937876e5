"""How far a policy has gone from its reference, on given responses: over the whole vocabulary at every token.

Less noise than the log-ratio of the sampled token alone, and never negative. With responses that the policy sampled,
the mean over them estimates KL(policy || reference) in nats per response.

Shapes: B responses, M response tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engine.packing import Packed, Response
from posttrain.engine.policy import entropy, head_logits, over_vocabulary, predicting_hidden
from posttrain.loops.scoring import per_response
from posttrain.losses.distill import reverse_kl


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

    def read(packed: Packed) -> list[Divergence]:
        hidden = [predicting_hidden(model, packed) for model in (policy, reference)]
        kl_M, entropy_M = over_vocabulary(policy, compare, *hidden)
        summed = ([float(part.sum()) for part in packed.split(values_M)] for values_M in (kl_M, entropy_M))
        return [Divergence(*both) for both in zip(*summed, strict=True)]

    def compare(policy_MC: Tensor, reference_MC: Tensor) -> tuple[Tensor, Tensor]:
        policy_MV = head_logits(policy, policy_MC, temperature)
        reference_MV = head_logits(reference, reference_MC, temperature)
        return reverse_kl(policy_MV, reference_MV), entropy(torch.log_softmax(policy_MV, dim=-1))

    return per_response(responses, read, micro_batch_tokens=micro_batch_tokens, device=policy.device)
