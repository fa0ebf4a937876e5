"""Reward terms as params.yaml names them: weights over time, and what a method cannot do with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from posttrain.config_fields import ConfigError, Section

NEVER_PAID_WRONG = {"accuracy", "brier", "length", "length_difficulty", "overlong", "repetition"}
"""Terms that a wrong answer never has above 0."""


class Schedule(Section):
    """A weight that is 0 before step `start` and rises linearly to its value over `ramp` steps."""

    weight: float
    start: Annotated[int, Field(ge=0)]
    ramp: Annotated[int, Field(ge=0)]


def refuse_wrong_positives(rewards: Mapping[str, Schedule], *, surrogate: str, baseline: str) -> None:
    """ConfigError where a method that learns from every reward above 0 would learn from wrong answers too."""
    paid = sorted(name for name, term in rewards.items() if term.weight and name not in NEVER_PAID_WRONG)
    if surrogate == "positives_only" and baseline == "none" and paid:
        raise ConfigError(
            f"rewards: got weights for {', '.join(paid)} with surrogate 'positives_only' and no baseline, wanted 0: "
            "they lift wrong answers above 0, from which it would learn as from right ones"
        )
