"""Part `grpo.asynchrony` of params.yaml: how far the sampler may be ahead of the trainer.

What is refused here is refused before anything runs: a choice under which responses could never be trained.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from posttrain.config_fields import ConfigError, Count, Section, Word

FRESH = 1
"""Versions that a fresh token is behind at most: what is sampled during an update is one behind after it."""


class FixedLead(Section):
    """`sync`: sampling and training take turns; `one_step_off`: the next batch is sampled during the update."""

    kind: Literal["sync", "one_step_off"]


class WholeResponses(Section):
    """A response is of one version of the weights, from its first token to its last."""

    kind: Literal["none"]


class Segments(Section):
    """Responses that are not finished go on under the next weights (Kimi k1.5, arXiv 2501.12599, section 2.6.2)."""

    kind: Literal["budget"]
    tokens: Count
    """Of each response per step, at most."""
    batches: Annotated[int, Field(ge=2)]
    """Batches of prompts under way at once; about as many as a group needs segments keeps everybody busy."""
    train: Literal["all", "fresh"]
    """Tokens that the loss sees; fresh: those at most FRESH versions old, the rest is given, as the prompt is."""


class BoundedAsync(Section):
    kind: Literal["async"]
    max_staleness: Annotated[int, Field(ge=0)]
    """Updates between the weights that sampled the oldest token of a group and those trained on it, at most."""
    partial: Annotated[WholeResponses | Segments, Field(discriminator="kind"), Word]


Asynchrony = Annotated[FixedLead | BoundedAsync, Field(discriminator="kind"), Word]


def steps_ahead(asynchrony: FixedLead | BoundedAsync) -> int:
    """Steps for which is being sampled before they are trained; what segments need beyond one is for going on."""
    match asynchrony:
        case FixedLead(kind="sync"):
            return 0
        case FixedLead() | BoundedAsync(partial=Segments()):
            return 1
        case BoundedAsync(max_staleness=steps):
            return steps


def most_stale(asynchrony: FixedLead | BoundedAsync) -> int:
    """Updates that a token may be behind when it is trained."""
    return asynchrony.max_staleness if isinstance(asynchrony, BoundedAsync) else steps_ahead(asynchrony)


def trains_fresh(asynchrony: FixedLead | BoundedAsync) -> bool:
    """Whether the loss sees fresh tokens only."""
    partial = asynchrony.partial if isinstance(asynchrony, BoundedAsync) else None
    return isinstance(partial, Segments) and partial.train == "fresh"


def refuse_unreachable(asynchrony: FixedLead | BoundedAsync, *, max_new_tokens: int, drop_constant: bool) -> None:
    """ConfigError where batches could not be filled ahead, or the longest responses never trained."""
    if drop_constant and asynchrony.kind != "sync":
        raise ConfigError(
            f"asynchrony: got '{asynchrony.kind}', wanted 'sync' with objective.groups 'drop_constant': how many "
            "groups a batch still needs is known only when its rewards are"
        )
    if isinstance(asynchrony, BoundedAsync) and isinstance(asynchrony.partial, Segments):
        steps, partial = asynchrony.max_staleness, asynchrony.partial
        segments = math.ceil(max_new_tokens / partial.tokens)
        if steps < segments:
            raise ConfigError(
                f"asynchrony.max_staleness: got {steps}, wanted at least {segments}: a response of "
                f"generation.max_new_tokens = {max_new_tokens} needs that many segments of {partial.tokens} tokens, "
                "and would always be dropped as too old"
            )
        if steps < partial.batches:
            raise ConfigError(
                f"asynchrony.partial.batches: got {partial.batches}, wanted at most max_staleness = {steps}: the last "
                "of them would be too old before their turn"
            )
