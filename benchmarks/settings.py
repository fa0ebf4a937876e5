"""benchmarks/params.yaml, validated: sizes of the work, models, and how often is measured. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from posttrain.config import parse_section, read_mapping
from posttrain.config_fields import Count, Fraction, Positive, Section

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Case = Literal["sft", "dpo", "dpo_cached", "reward_model", "grpo_update", "generate", "grpo"]
CASES: tuple[Case, ...] = get_args(Case)
"""In the order in which they are measured: a case comes after those that prove that it compares like with like."""

PROOFS: dict[Case, tuple[Case, ...]] = {case: (case,) for case in CASES} | {"grpo": ("grpo_update", "generate")}
"""The parity gates of each case. A whole GRPO step draws its own samples, so its two halves are compared instead."""


class Size(Section):
    """One optimizer step, or one round of generation: `prompts` groups of responses, in token ids drawn at random."""

    prompts: Count
    group: Count
    """Responses to each prompt: 1 in sft; in a pair 2, the chosen one first."""
    prompt_tokens: Count
    response_tokens: Count
    """Of the longest response."""
    spread: Fraction
    """Lengths of responses are uniform between (1 - spread) * response_tokens and response_tokens."""
    steps: Count
    """Steps that make up one measurement: more where one takes less than about a second."""
    peer_batch: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Values tried for the peer's per_device_train_batch_size (packed rows, pairs, responses); the fastest is taken."""

    @model_validator(mode="after")
    def group_fits(self) -> Size:
        if self.group > 1 and any((self.prompts * self.group) % batch for batch in self.peer_batch):
            raise ValueError(f"peer_batch: got {self.peer_batch}, wanted divisors of {self.prompts} x {self.group}")
        return self


class Model(Section):
    profile: str
    """Of profiles/: architecture and engine."""
    folder: str | None
    """Weights to be used where this folder is there."""
    precision: Precision
    """Ours; fp32 where the machine does not multiply in bf16. The peer's is the fastest of those it has."""
    sequence_length: Count
    """Of packed rows."""
    lr: Positive
    cases: dict[Case, Size]

    def precision_here(self, bf16: bool) -> Precision:
        """`bf16`: whether this machine multiplies in it."""
        return self.precision if bf16 else "fp32"


class Tolerance(Section):
    """Largest relative difference of loss and gradient norm that counts as the same."""

    fp32: Positive
    bf16: Positive


class Settings(Section):
    seed: Annotated[int, Field(ge=0)]
    pairs: Annotated[int, Field(ge=5)]
    """Measurements of each side, in turns: ours, the peer's, ours, the peer's, ..."""
    warmup: Annotated[int, Field(ge=2)]
    """Steps of each side before the first; in fp32 the parity gate compares them."""
    bootstrap: Count
    deadline: Positive
    """Longest wait for one step of one side, or for its start, in seconds."""
    tolerance: Tolerance
    agreement: Fraction
    """Share of greedily decoded tokens that must be equal: rounding may turn a near tie."""
    models: dict[str, Model]


def load_settings(path: Path) -> Settings:
    """Raises ConfigError naming every wrong field."""
    return parse_section(Settings, read_mapping(path), str(path))
