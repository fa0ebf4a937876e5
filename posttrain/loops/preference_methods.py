"""The preference methods: each a loss of what is known of a pair, and what has to be known for it.

Shape: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.losses.preference import (
    cdpo,
    dpo,
    dpo_norm,
    ipo,
    ipo_norm,
    kto,
    log_ratio_margin,
    orpo,
    robust_dpo,
    simpo,
)


@dataclass(frozen=True, slots=True)
class PairTerms:
    """Log-probabilities of both responses in nats: sums over tokens, or per token where the method says so."""

    chosen_B: Tensor
    rejected_B: Tensor
    reference_chosen_B: Tensor
    """0 where the method has no reference."""
    reference_rejected_B: Tensor
    baseline: Tensor
    """z0 of kto, for the whole batch; 0 elsewhere."""

    @property
    def margin_B(self) -> Tensor:
        return log_ratio_margin(self.chosen_B, self.rejected_B, self.reference_chosen_B, self.reference_rejected_B)


@dataclass(frozen=True, slots=True)
class Method:
    loss: Callable[[PairTerms, Any], Tensor]
    """Per pair (B,), of the terms and of the method's section of params.yaml."""
    per_token: bool = False
    reference: bool = True
    """Whether the loss, and the reward it implies, compare with the policy at the start."""
    mismatched: bool = False
    """Whether a baseline is wanted of prompts with responses to other prompts."""


def _kto(terms: PairTerms, numbers: Any) -> Tensor:
    """Each pair is two examples of which neither knows of the other; their mean."""
    chosen_B, rejected_B = (
        kto(
            log_ratio_B,
            torch.full_like(log_ratio_B, desirable, dtype=torch.bool),
            terms.baseline,
            beta=numbers.beta,
            desirable_weight=numbers.desirable_weight,
            undesirable_weight=numbers.undesirable_weight,
        )
        for log_ratio_B, desirable in (
            (terms.chosen_B - terms.reference_chosen_B, True),
            (terms.rejected_B - terms.reference_rejected_B, False),
        )
    )
    return 0.5 * (chosen_B + rejected_B)


METHODS: Mapping[str, Method] = {
    "dpo": Method(lambda t, n: dpo(t.margin_B, beta=n.beta)),
    "dpo_norm": Method(lambda t, n: dpo_norm(t.margin_B, beta=n.beta), per_token=True),
    "cdpo": Method(lambda t, n: cdpo(t.margin_B, beta=n.beta, flip_rate=n.flip_rate)),
    "robust_dpo": Method(lambda t, n: robust_dpo(t.margin_B, beta=n.beta, flip_rate=n.flip_rate)),
    "ipo": Method(lambda t, n: ipo(t.margin_B, beta=n.beta)),
    "ipo_norm": Method(lambda t, n: ipo_norm(t.margin_B, beta=n.beta), per_token=True),
    "simpo": Method(
        lambda t, n: simpo(t.chosen_B, t.rejected_B, beta=n.beta, gamma=n.gamma), per_token=True, reference=False
    ),
    "orpo": Method(lambda t, n: orpo(t.chosen_B, t.rejected_B, beta=n.beta), per_token=True, reference=False),
    "kto": Method(_kto, mismatched=True),
}
"""By the `kind` of posttrain.config_align.PairMethod."""
