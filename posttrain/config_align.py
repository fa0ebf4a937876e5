"""Section `align` of params.yaml: the method, with the numbers that its loss reads, and the rounds.

A method is a mapping with `kind` and exactly its own numbers. A number of another method is refused, and an overlay
that changes the kind replaces all of them: a beta means something else under every method. What each loss is stands in
posttrain.losses.preference; the numbers that belong together, in docs/align.md; those of RL on a reward model, in
posttrain.config_align_rl.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config_align_rl import LearnedRl
from posttrain.config_fields import ConfigError, Count, NonNegative, Optimizer, Positive, Section, Word

FlipRate = Annotated[float, Field(gt=0.0, lt=0.5)]


class Likely(Section):
    """Of every method whose loss does not hold the chosen responses up by itself."""

    sft_weight: NonNegative
    """Weight of the chosen responses' mean negative log-likelihood, which keeps them likely."""


class Dpo(Likely):
    """Against a reference; `_norm`: with log-probabilities per token."""

    kind: Literal["dpo", "dpo_norm", "ipo", "ipo_norm"]
    beta: Positive
    """The leash to the reference: reward per nat of log-ratio, and per nat per token under `_norm`.

    Of ipo, the log-ratio margin aimed at is 1 / (2 beta).
    """


class NoisyDpo(Likely):
    """DPO that knows how many labels are wrong."""

    kind: Literal["cdpo", "robust_dpo"]
    beta: Positive
    flip_rate: FlipRate
    """Share of pairs taken to be the wrong way round; with none, the method is dpo."""


class Simpo(Likely):
    kind: Literal["simpo"]
    beta: Positive
    """Reward per nat of mean log-probability."""
    gamma: NonNegative
    """Margin of reward that chosen must have over rejected. Some codes have gamma / beta in its place."""


class Kto(Likely):
    """Learns from single responses: each pair is one that is desired and one that is not."""

    kind: Literal["kto"]
    beta: Positive
    desirable_weight: Positive
    undesirable_weight: Positive


class Orpo(Section):
    kind: Literal["orpo"]
    beta: Positive
    """Weight of the odds-ratio term (the paper's lambda) beside the likelihood of the chosen response."""
    sft_weight: ClassVar[float] = 0.0
    """No field: that likelihood is in the loss."""


PairMethod = Dpo | NoisyDpo | Simpo | Kto | Orpo
"""Those that learn from pairs."""
Method = Annotated[PairMethod | LearnedRl, Field(discriminator="kind"), Word]


class Align(Section):
    method: Method
    rounds: Count
    """The first on the pairs of stage `prefer`, each further one on fresh pairs of the policy itself; of RL, one."""
    round_problems: Count
    """Prompts from which a further round makes its pairs."""
    optimizer: Optimizer
    epochs: Positive
    """Of a preference method, over the pairs of each round."""
    batch_pairs: Count
    win_problems: Count
    """Held-out prompts on which aligned and fused model are compared by the judge."""

    @model_validator(mode="after")
    def choices_agree(self) -> Align:
        if isinstance(self.method, Kto) and self.batch_pairs < 2:
            raise ConfigError(
                f"batch_pairs: got {self.batch_pairs}, wanted at least 2 with method 'kto': its baseline is a mean "
                "over the prompts of a batch"
            )
        if isinstance(self.method, LearnedRl) and self.rounds > 1:
            raise ConfigError(
                f"rounds: got {self.rounds}, wanted 1 with method '{self.method.kind}': it samples afresh in every step"
            )
        return self
