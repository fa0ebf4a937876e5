"""What became of a policy: accuracy and tokens beside the model it started from, and how far it has gone.

Shapes: R bootstrap draws, Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.engine.policy import Policy
from posttrain.evals.intervals import Floats, bootstrap_mean, paired_difference, resample
from posttrain.loops.divergence import divergences
from posttrain.loops.rl_step import token_ids
from posttrain.loops.sample import Sample


def compare(
    ours: Sequence[Sequence[Sample]], theirs: Sequence[Sequence[Sample]], *, draws: int, seed: int
) -> dict[str, Any]:
    """`end` and `fuse` with accuracy and tokens per answer, `difference` of `end` and `fuse` question by question.

    Intervals are 95 % percentile bootstraps over questions, all from the same draws.
    """
    counts_RQ = resample(len(ours), draws=draws, seed=seed)
    end, fuse = means(ours), means(theirs)
    sides = {
        name: {key: bootstrap_mean(value_Q, counts_RQ).to_json() for key, value_Q in side.items()}
        for name, side in (("end", end), ("fuse", fuse))
    }
    gaps = {key: paired_difference(end[key], fuse[key], counts_RQ).to_json() for key in end}
    return {**sides, "difference": gaps}


def means(groups: Sequence[Sequence[Sample]]) -> dict[str, Floats]:
    """Of each question, over its answers: share of right ones, and tokens."""
    return {
        "accuracy": np.array([np.mean([float(sample.correct) for sample in group]) for group in groups]),
        "tokens": np.array([np.mean([float(sample.tokens) for sample in group]) for group in groups]),
    }


def kl_to(
    before: Policy,
    policy: Policy,
    groups: Sequence[Sequence[Sample]],
    *,
    temperature: float,
    micro_batch_tokens: int,
) -> float:
    """KL(policy || before) in nats per response, over the whole vocabulary at every token of `policy`'s answers."""
    found = divergences(
        policy.model,
        before.model.to(policy.model.device),
        [token_ids(sample.rollout) for group in groups for sample in group],
        temperature=temperature,
        micro_batch_tokens=micro_batch_tokens,
    )
    return sum(one.kl for one in found) / len(found)
