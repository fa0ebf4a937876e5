"""benchmarks/params.yaml, validated: sizes of the work, models, and how often is measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from posttrain.config import MicroModel, parse_section, read_mapping
from posttrain.config_fields import Count, Fraction, Positive, Section

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PeerPrecision = Literal["fp32", "mixed", "bf16"]
Case = Literal["sft", "dpo", "dpo_cached", "reward_model", "grpo_update", "generate", "grpo"]
CASES: tuple[Case, ...] = get_args(Case)
"""In the order in which they are measured: a case comes after those that prove that it compares like with like."""

PROOFS: dict[Case, tuple[Case, ...]] = {case: (case,) for case in CASES} | {"grpo": ("grpo_update", "generate")}
"""The parity gates of each case. A whole GRPO step draws its own samples, so its two halves are compared instead."""

Axis = Literal["parameters", "length", "group", "prompts"]
AXES: tuple[Axis, ...] = get_args(Axis)

HELD: Mapping[Axis, tuple[str, ...]] = {
    "parameters": ("prompts", "group", "prompt_tokens", "response_tokens"),
    "length": ("model", "group", "tokens"),
    "group": ("model", "prompts", "prompt_tokens", "response_tokens"),
    "prompts": ("model", "group", "prompt_tokens", "response_tokens"),
}
"""What is the same at all points of an axis."""


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
    """Values tried on a CPU for the peer's per_device_train_batch_size (packed rows, pairs, responses)."""
    pass_tokens: Count | None = None
    """Of one forward pass of ours on a CPU, at most; where it is not given, as many as the profile says."""

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
    """Ours; fp32 where the machine does not multiply in bf16."""
    peer_precisions: Annotated[tuple[PeerPrecision, ...], Field(min_length=1)]
    """Tried for the peer; fp32 alone where the machine does not multiply in bf16."""
    sequence_length: Count
    """Of packed rows."""
    lr: Positive
    cases: dict[Case, Size]

    def precision_here(self, bf16: bool) -> Precision:
        """`bf16`: whether this machine multiplies in it."""
        return self.precision if bf16 else "fp32"


class Point(Section):
    """One optimizer step of the GRPO update, on responses that all have the same length."""

    model: str
    """Of growth.models."""
    prompts: Count
    group: Annotated[int, Field(ge=2)]
    """Responses to each prompt."""
    prompt_tokens: Count
    response_tokens: Count

    @property
    def length(self) -> int:
        """Tokens of a prompt and a response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> int:
        """Those that go through the model: a prompt once for all its responses."""
        return self.prompts * (self.prompt_tokens + self.group * self.response_tokens)

    @property
    def size(self) -> Size:
        """As the cases have it."""
        return Size(**self.model_dump(exclude={"model"}), spread=0.0, steps=1, peer_batch=(1,))


class Growth(Section):
    """How seconds and memory of our GRPO update grow, one thing at a time; no peer."""

    profile: str
    """Of profiles/: engine, vocabulary and tokens per forward pass of all points; its base is built from nothing."""
    lr: Positive
    warmup: Count
    """Steps before the first that is timed."""
    steps: Annotated[int, Field(ge=3)]
    """Timed at the least."""
    seconds: Positive
    """Timed steps go on until they have taken so long together."""
    models: dict[str, MicroModel]
    axes: dict[Axis, Annotated[tuple[Point, ...], Field(min_length=2)]]

    @model_validator(mode="after")
    def points_fit(self) -> Growth:
        for axis, points in self.axes.items():
            for number, point in enumerate(points):
                self._refuse_misfit(f"axes.{axis}.{number}", point)
            refuse_mixture(axis, points)
        return self

    def _refuse_misfit(self, name: str, point: Point) -> None:
        if point.model not in self.models:
            raise ValueError(f"{name}.model: got {point.model!r}, wanted one of {', '.join(self.models)}")
        longest = self.models[point.model].max_position_embeddings
        if point.length > longest:
            raise ValueError(
                f"{name}: got {point.prompt_tokens} + {point.response_tokens} tokens, wanted at most {longest}, the "
                f"max_position_embeddings of model {point.model}"
            )


def refuse_mixture(axis: Axis, points: tuple[Point, ...]) -> None:
    """Raises ValueError where something else changes along an axis, or where the axis does not rise."""
    for name in HELD[axis]:
        if len(found := {getattr(point, name): None for point in points}) > 1:
            raise ValueError(
                f"axes.{axis}: {name}: got {', '.join(map(str, found))}, wanted the same at every point of this axis"
            )
    if axis == "parameters":
        names = [point.model for point in points]
        if len(set(names)) < len(names):
            raise ValueError(f"axes.{axis}: model: got {', '.join(names)}, wanted different ones")
        return
    values = [getattr(point, axis) for point in points]
    if any(before >= after for before, after in pairwise(values)):
        raise ValueError(f"axes.{axis}: got {', '.join(map(str, values))}, wanted each above the one before it")


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
    growth: Growth


def load_settings(path: Path) -> Settings:
    """Raises ConfigError naming every wrong field."""
    return parse_section(Settings, read_mapping(path), str(path))
