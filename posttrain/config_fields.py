"""Field types and sections that several parts of params.yaml share; the whole is in posttrain.config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Scalar = int | float | bool | str


def _as_mapping(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Word = BeforeValidator(_as_mapping)
"""Of a choice told apart by `kind`: `none` is short for `{kind: none}`."""


class ConfigError(ValueError):
    """A params file that cannot be used; names the file, the field, the value got and the value wanted."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Optimizer(Section):
    """AdamW or Muon with a warm-up and a schedule; one learning rate per optimizer step."""

    kind: Literal["adamw", "muon"]
    """muon: hidden matrices step by their orthogonal momentum, the rest by AdamW; needs zero_stage 0."""
    lr: Positive
    schedule: Literal["constant", "linear", "cosine"]
    warmup: Fraction
    """Share of the steps over which the rate rises linearly from 0."""
    final_lr_ratio: Fraction
    """Rate at the last step as a share of lr (cosine and linear)."""
    weight_decay: NonNegative
    betas: tuple[Fraction, Fraction]
    """Of AdamW."""
    grad_clip: Positive
    """Largest global gradient norm."""


def optimizers_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Optimizer]]:
    """Every optimizer of a section and of those below it, with its dotted name."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Optimizer):
            yield f"{prefix}{name}", value
        elif isinstance(value, Section):
            yield from optimizers_of(value, f"{prefix}{name}.")


class Generation(Section):
    """How responses are sampled. top_p and top_k stay off: a truncated sampler would not be the policy trained."""

    temperature: NonNegative
    max_new_tokens: Count
