"""A training stage's look at its own model: accuracy, length and form on some held-out problems.

Small on purpose. The suite with its intervals is stage `evaluate`, on which no training stage depends.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from posttrain.config import Generation
from posttrain.engine.rollout import RolloutEngine
from posttrain.loops.sample import Sample, sample_problems
from posttrain.records import Mode, Problem


def look_at_heldout(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    mode: Mode,
    samples: int,
    generation: Generation,
    seed: int,
) -> dict[str, float]:
    """What `describe` says of `samples` answers to each problem; the same draws each time."""
    return describe(
        sample_problems(engine, tokenizer, problems, mode=mode, samples=samples, generation=generation, seed=seed)
    )


def describe(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Accuracy, tokens of all and of right answers (0 where none is), well-formed and mixed-language shares."""
    flat = [sample for group in groups for sample in group]
    right = [sample for sample in flat if sample.correct]
    return {
        "accuracy": len(right) / len(flat),
        "tokens": sum(sample.tokens for sample in flat) / len(flat),
        "format_rate": sum(sample.parts.well_formed for sample in flat) / len(flat),
        "language_mixing": sum(sample.mixed for sample in flat) / len(flat),
        "tokens_correct": sum(sample.tokens for sample in right) / max(1, len(right)),
    }
