"""Sections `prefer` and `reward_model` of params.yaml: where preference pairs come from, and what is learnt of them.

A judge says which of two answers is better, and by how much; noise says how often a label goes against it. Choices that
contradict each other are refused here, before anything runs.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config_fields import (
    ConfigError,
    Count,
    Fraction,
    Generation,
    NonNegative,
    Optimizer,
    Positive,
    Section,
    Word,
)

REWARD_MODEL = PurePath("models/reward_model")
"""What stage reward_model makes of the pairs: no judge of the same pairs."""

FlipRate = Annotated[float, Field(ge=0.0, lt=0.5)]
"""Share of labels against the judge; from one half on they would teach the opposite."""


class RuleJudge(Section):
    """`rule`: right, then one script, then shorter; `shortest`: the shortest right answer over long ones."""

    kind: Literal["rule", "shortest"]


class ModelJudge(Section):
    """The better answer has the higher reward, and the margin is the difference."""

    kind: Literal["reward_model"]
    path: str
    """Folder of a model of stage reward_model, with the vocabulary of the model that answers; DVC does not watch it."""

    @model_validator(mode="after")
    def judges_others(self) -> ModelJudge:
        if PurePath(self.path) == REWARD_MODEL:
            raise ConfigError(f"path: got '{self.path}', which is made of these pairs; wanted: a copy of it elsewhere")
        return self


class FileJudge(Section):
    """Pairs that are there already: nothing is sampled, and their labels stay as they are."""

    kind: Literal["file"]
    path: str
    """JSONL rows with `prompt`, `chosen`, `rejected`, and optionally `margin` and `split`; DVC does not watch it."""


class FlipNoise(Section):
    """Every label alike goes against the judge now and then."""

    kind: Literal["flip"]
    rate: FlipRate


class BradleyTerryNoise(Section):
    """A label follows the judge with probability sigmoid(margin / temperature): what is close is often mislabelled."""

    kind: Literal["bradley_terry"]
    temperature: Positive
    """In units of the judge's margin."""


class AnnotatorNoise(Section):
    """Several simulated annotators label every pair (AlpacaFarm, arXiv 2305.14387)."""

    kind: Literal["annotators"]
    rates: Annotated[tuple[FlipRate, ...], Field(min_length=1)]
    """Of each annotator, how often it goes against the judge."""
    labels: Literal["majority", "each"]
    """One row per pair with the label of most, or one row per pair and annotator."""

    @model_validator(mode="after")
    def votes_decide(self) -> AnnotatorNoise:
        if self.labels == "majority" and len(self.rates) % 2 == 0:
            raise ConfigError(f"rates: got {len(self.rates)} annotators, wanted an odd number: a majority can tie")
        return self


class Prefer(Section):
    model: Literal["sft", "grpo", "fuse"]
    """Model of the chain that answers; `base` knows no chat."""
    problems: Count
    samples: Count
    generation: Generation
    judge: Annotated[RuleJudge | ModelJudge | FileJudge, Field(discriminator="kind"), Word]
    noise: Annotated[FlipNoise | BradleyTerryNoise | AnnotatorNoise, Field(discriminator="kind")]
    heldout_share: Fraction
    max_pairs_per_problem: Count

    @model_validator(mode="after")
    def given_labels_stay(self) -> Prefer:
        clean = isinstance(self.noise, FlipNoise) and self.noise.rate == 0.0
        if isinstance(self.judge, FileJudge) and not clean:
            got = ", ".join(f"{name}: {value}" for name, value in self.noise.model_dump().items())
            raise ConfigError(f"noise: got {{{got}}}, wanted {{kind: flip, rate: 0.0}}: a file's labels are the user's")
        return self


class RewardModel(Section):
    optimizer: Optimizer
    epochs: Positive
    batch_pairs: Count
    centering: NonNegative
    """Weight of (r_chosen + r_rejected)^2, which fixes the level of the rewards."""
    margin_scale: NonNegative
    """Reward by which the chosen response has to be ahead, per unit of the pair's margin; 0: plain Bradley-Terry."""
