"""What the study runs with: its own params.yaml, and sections of the chain's that it changes.

The long model and the RL arm are stage grpo's own recipe with other reward terms, so that whatever the profile says of
RL holds here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from posttrain import config_align
from posttrain.config import (
    Align,
    Count,
    Fraction,
    Generation,
    Habits,
    Optimizer,
    Positive,
    Rl,
    Section,
    parse_section,
    read_mapping,
)
from posttrain.config_fields import NonNegative
from posttrain.config_rewards import Schedule

STUDY = Path("studies/long2short/params.yaml")
ON_LENGTH = frozenset(("length", "length_difficulty", "overlong"))
"""Reward terms that look at length: the long model is trained without them."""


class Long(Section):
    steps: Count
    curriculum_steps: Annotated[int, Field(ge=0)]


class Tuned(Section):
    """Supervised training of an arm."""

    epochs: Positive
    batch_tokens: Count
    sequence_length: Count
    optimizer: Optimizer


class Short(Tuned):
    examples: Count
    traces: Habits


class Samples(Section):
    problems: Count
    per_problem: Count
    generation: Generation


class Merge(Section):
    share: Fraction
    """Of the long model's weights."""


class Dpo(Section):
    max_pairs_per_problem: Count
    beta: Positive
    sft_weight: NonNegative
    epochs: Positive
    batch_pairs: Count
    optimizer: Optimizer


class ShortRl(Section):
    steps: Count
    length_weight: Positive
    max_new_tokens: Count


class Evaluate(Section):
    samples: Count
    bootstrap: Count


class Study(Section):
    """The whole of studies/long2short/params.yaml."""

    long: Long
    short: Short
    samples: Samples
    merge: Merge
    tuned: Tuned
    dpo: Dpo
    rl: ShortRl
    evaluate: Evaluate


def load_study(path: Path = STUDY) -> Study:
    """The validated study; raises ConfigError with every wrong field named."""
    return parse_section(Study, read_mapping(path), str(path))


def long_section(grpo: Rl, long: Long) -> Rl:
    """Stage grpo's recipe without the terms on length."""
    rewards = {name: term for name, term in grpo.rewards.items() if name not in ON_LENGTH}
    changes = {"rewards": rewards, "steps": long.steps, "curriculum_steps": long.curriculum_steps}
    return grpo.model_copy(update=changes)


def short_section(grpo: Rl, rl: ShortRl) -> Rl:
    """Stage grpo's recipe with the length term from the first step, its other terms, and a lower limit of tokens."""
    rewards = {name: term for name, term in grpo.rewards.items() if name not in ON_LENGTH}
    return grpo.model_copy(
        update={
            "rewards": rewards | {"length": Schedule(weight=rl.length_weight, start=0, ramp=0)},
            "steps": rl.steps,
            "curriculum_steps": 0,
            "generation": grpo.generation.model_copy(update={"max_new_tokens": rl.max_new_tokens}),
        }
    )


def dpo_section(align: Align, dpo: Dpo) -> Align:
    """Stage align's section for plain DPO."""
    method = config_align.Dpo(kind="dpo", beta=dpo.beta, sft_weight=dpo.sft_weight)
    names = ("epochs", "batch_pairs", "optimizer")
    return align.model_copy(update={"method": method} | {name: getattr(dpo, name) for name in names})
