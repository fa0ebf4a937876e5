"""What became of a model: accuracy, tokens of right answers, and how many right answers a thousand tokens buy.

Shapes: Q questions, R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.evals.intervals import Floats, bootstrap_ratio, paired_difference
from posttrain.loops.sample import Sample


def outcome(groups: Sequence[Sequence[Sample]], start: Sequence[Sequence[Sample]], counts_RQ: Floats) -> dict[str, Any]:
    """A model's answers against those of the long model to the same questions; 95 % intervals over questions.

    `efficiency` is right answers per 1000 tokens sampled, wrong answers' tokens included: a model is not efficient for
    being brief and wrong. What could not be verified counts as not right in all three.
    """
    right_Q = [sum(sample.correct for sample in group) for group in groups]
    samples_Q = [len(group) for group in groups]
    tokens_Q = [sum(sample.tokens for sample in group) for group in groups]
    right_tokens_Q = [sum(sample.tokens for sample in group if sample.correct) for group in groups]
    values = {
        "accuracy": bootstrap_ratio(right_Q, samples_Q, counts_RQ),
        "tokens_right": bootstrap_ratio(right_tokens_Q, right_Q, counts_RQ),
        "tokens": bootstrap_ratio(tokens_Q, samples_Q, counts_RQ),
        "efficiency": bootstrap_ratio([1000 * right for right in right_Q], tokens_Q, counts_RQ),
        "difference": paired_difference(shares(groups), shares(start), counts_RQ),
    }
    return {name: None if value is None else value.to_json() for name, value in values.items()}


def shares(groups: Sequence[Sequence[Sample]]) -> list[float]:
    """Share of right answers per question."""
    return [sum(sample.correct for sample in group) / len(group) for group in groups]
