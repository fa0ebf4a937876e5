"""Section `grpo` of params.yaml: the axes from which a reinforcement-learning objective is composed, and its loop.

An axis is a word, or, where the choice has numbers of its own, a mapping with `kind` and exactly those numbers: a file
of objectives/ that states every axis therefore means the same over whatever lies below it. Choices that contradict each
other are refused here, before anything runs. What each choice does stands in posttrain.losses and posttrain.rl.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config_asynchrony import Asynchrony, refuse_unreachable
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
from posttrain.config_rewards import Schedule, refuse_wrong_positives

GROUP_BASELINES = ("group_mean", "leave_one_out")
"""Baselines that compare a sample with the others of its prompt."""


class SampleBaseline(Section):
    """Made of the rewards of other samples: of the prompt's group, or of the whole step."""

    kind: Literal["none", "group_mean", "leave_one_out", "batch_mean"]


class ValueBaseline(Section):
    """A value network of its own (PPO)."""

    kind: Literal["value"]
    gamma: Annotated[float, Field(gt=0.0, le=1.0)]
    lam: Fraction
    """Lambda of GAE: 1 sums real rewards, 0 trusts the value of the next token."""
    clip: Positive
    """How far a value may move from what it was when the samples were taken before its loss stops paying for it."""
    lr_scale: Positive
    """Learning rate of the value network, in units of optimizer.lr."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps at the start in which the value network trains alone."""
    reward_model: str | None
    """Folder of the reward model that the value network starts as; null: the policy's body with a new scalar head."""


class OutcomeCredit(Section):
    """All tokens of a response share what its reward says; with the baseline `value`, its last token has the reward."""

    kind: Literal["outcome"]


class CheckedSteps(Section):
    """The default world's exact checker: 1 for a right step, 0 for a wrong one."""

    kind: Literal["checker"]


class ModelledSteps(Section):
    """A process reward model: the probability, seen from the end of each step, that the response ends right."""

    kind: Literal["prm"]
    path: Annotated[str, Field(min_length=1)]
    """Its folder, in the policy's vocabulary; `python -m studies.process` makes one."""


StepSource = CheckedSteps | ModelledSteps


class ProcessCredit(Section):
    """A token has the sum of the normalised rewards of the steps that end at it or later."""

    kind: Literal["process"]
    steps: Annotated[StepSource, Field(discriminator="kind"), Word]
    """Where step rewards come from."""
    outcome: NonNegative
    """Weight of the outcome's advantage, which is added; 0: the steps alone count."""


class NoClip(Section):
    kind: Literal["none"]


class PpoClip(Section):
    kind: Literal["ppo"]
    low: NonNegative
    high: NonNegative
    """Bounds of the ratio: 1 - low and 1 + high."""


class DualClip(Section):
    kind: Literal["dual"]
    low: NonNegative
    high: NonNegative
    bound: Annotated[float, Field(gt=1.0)]
    """The loss of a bad token is at most this times its advantage."""


class CispoClip(Section):
    kind: Literal["cispo"]
    high: NonNegative
    """Weights are at most 1 + high."""


class PlainSurrogate(Section):
    kind: Literal["clipped", "reinforce", "positives_only"]


class SquaredLogRatio(Section):
    """Kimi k1.5's mirror descent: the policy that sampled is the reference of each step."""

    kind: Literal["squared_log_ratio"]
    tau: NonNegative
    """Strength of the pull to the policy that sampled."""
    reset_optimizer: bool
    """Forget AdamW's moments before each batch, whose objective is a new one."""


class NoKL(Section):
    """The reference is only measured against."""

    kind: Literal["none"]


class FixedKL(Section):
    kind: Literal["fixed"]


class AdaptiveKL(Section):
    """The coefficient follows the measured KL (arXiv 1909.08593, section 2.2)."""

    kind: Literal["adaptive"]
    target: Positive
    """KL in nats per response."""
    horizon: Count
    """Samples over which the coefficient may change by a factor of about 1.2 (e^0.2)."""


class ReferenceKL(Section):
    kind: Literal["in_reward", "in_loss"]
    estimator: Literal["k1", "k2", "k3", "k3_corrected"]
    coefficient: Positive
    """At the first step, where the controller is adaptive."""
    controller: Annotated[FixedKL | AdaptiveKL, Field(discriminator="kind"), Word]
    reset_reference: Annotated[int, Field(ge=0)]
    """Steps after which the policy becomes the reference, again and again; 0: never."""


class NoCorrection(Section):
    kind: Literal["none"]


class SamplerCorrection(Section):
    kind: Literal["truncated", "masked", "sequence_mask"]
    cap: Annotated[float, Field(gt=1.0)]
    """Largest weight of trainer over sampler probability: truncated to it, or masked beyond it."""


class AllGroups(Section):
    kind: Literal["keep_all"]


class DroppedGroups(Section):
    """Constant groups are replaced by new ones, instead of counting as groups that teach nothing."""

    kind: Literal["drop_constant"]
    refills: Annotated[int, Field(ge=0)]
    """Further rounds of sampling until the batch is full."""


class PlainTruncation(Section):
    kind: Literal["keep", "mask"]


class TruncationPenalty(Section):
    kind: Literal["penalty"]
    penalty: Positive
    """Taken from the reward of a response that did not end its turn."""


class TruncationReward(Section):
    kind: Literal["replace"]
    reward: float
    """The reward of a response that did not end its turn, whatever its terms say."""


class Objective(Section):
    """One choice per axis (design: RL is one loop)."""

    baseline: Annotated[SampleBaseline | ValueBaseline, Field(discriminator="kind"), Word]
    scale: Literal["none", "group_std", "batch_std", "whiten"]
    """whiten: mean 0 and standard deviation 1 over all trained tokens of the step."""
    credit: Annotated[OutcomeCredit | ProcessCredit, Field(discriminator="kind"), Word]
    ratio: Literal["token", "sequence", "none"]
    clip: Annotated[NoClip | PpoClip | DualClip | CispoClip, Field(discriminator="kind"), Word]
    surrogate: Annotated[PlainSurrogate | SquaredLogRatio, Field(discriminator="kind"), Word]
    aggregate: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
    kl: Annotated[NoKL | ReferenceKL, Field(discriminator="kind"), Word]
    correction: Annotated[NoCorrection | SamplerCorrection, Field(discriminator="kind"), Word]
    groups: Annotated[AllGroups | DroppedGroups, Field(discriminator="kind"), Word]
    truncated: Annotated[PlainTruncation | TruncationPenalty | TruncationReward, Field(discriminator="kind"), Word]
    """Responses that did not end their turn; mask: they count in the baseline, and in neither loss nor denominators."""


class Rft(Section):
    """Method `rft`: fine-tuning on right samples of the model before, the baseline of every RL claim."""

    max_per_problem: Count
    """Right responses of one problem at most."""
    epochs: Positive
    batch_tokens: Count
    sequence_length: Count


class Rl(Section):
    """Shared by grpo, and by align where its method is an RL one."""

    method: Literal["rl", "rft"]
    rft: Rft
    objective: Objective
    rewards: dict[str, Schedule]
    """Reward term -> weight and schedule."""
    sampling: Literal["uniform", "curriculum", "prioritised"]
    curriculum_steps: Annotated[int, Field(ge=0)]
    """Steps over which the curriculum moves from the easiest prompts to all of them."""
    prompts_per_step: Count
    group_size: Count
    steps: Count
    epochs: Count
    """Passes over each batch of rollouts."""
    minibatches: Count
    """Optimizer steps per pass."""
    generation: Generation
    optimizer: Optimizer
    asynchrony: Asynchrony
    """How far the sampler may be ahead of the trainer."""
    mismatch_budget: Positive
    """Largest divergence (k3, nats per token) of the trainer from what the sampler reported: above, the run stops."""
    max_unverified: Fraction
    """The run stops when a larger share of a step's samples could not be verified."""
    save_every: Count
    eval_every: Count
    """Steps between looks at the held-out problems; more at the start, the end and where the length reward starts."""
    eval_samples: Count
    keep: Literal["last", "best"]
    """Weights that are kept: after the last step, or of the look at which the held-out accuracy was highest."""

    @model_validator(mode="after")
    def choices_agree(self) -> Rl:
        refuse_contradictions(self.objective, group_size=self.group_size)
        refuse_unreachable(
            self.asynchrony,
            max_new_tokens=self.generation.max_new_tokens,
            drop_constant=isinstance(self.objective.groups, DroppedGroups),
        )
        value = self.objective.baseline
        refuse_wrong_positives(self.rewards, surrogate=self.objective.surrogate.kind, baseline=value.kind)
        if isinstance(value, ValueBaseline) and value.warmup_steps >= self.steps:
            raise ConfigError(
                f"objective.baseline.warmup_steps: got {value.warmup_steps}, wanted fewer than steps = {self.steps}: "
                "the policy would never be trained"
            )
        controller = self.objective.kl.controller if isinstance(self.objective.kl, ReferenceKL) else None
        samples = self.prompts_per_step * self.group_size
        if isinstance(controller, AdaptiveKL) and controller.horizon < samples:
            raise ConfigError(
                f"objective.kl.controller.horizon: got {controller.horizon}, wanted at least the {samples} samples of "
                "a step: the coefficient would jump"
            )
        return self


def refuse_contradictions(objective: Objective, *, group_size: int) -> None:
    """Choices that are each right and together wrong: ConfigError with the axis, the value, and the reason."""
    for got, wrong, wanted in _rules(objective, group_size):
        if wrong:
            raise ConfigError(f"{got}, wanted {wanted}")


def _rules(o: Objective, group_size: int) -> list[tuple[str, bool, str]]:
    """(axis and value got, whether it contradicts the others, value wanted and why)."""
    baseline, credit, clip, surrogate = o.baseline.kind, o.credit.kind, o.clip.kind, o.surrogate.kind
    by_group = baseline in GROUP_BASELINES or o.scale == "group_std" or credit == "process"
    whole_sequences = "sequence_sum", "constant"
    aggregate, plain = f"objective.aggregate: got '{o.aggregate}'", surrogate != "clipped"
    return [
        (
            aggregate,
            o.ratio == "sequence" and o.aggregate != "sequence_mean",
            "'sequence_mean': a ratio per sequence is normalised by length, and so must its loss be (GSPO)",
        ),
        (
            aggregate,
            surrogate == "squared_log_ratio" and o.aggregate not in whole_sequences,
            "'sequence_sum' or 'constant': the squared log-ratio belongs to whole sequences (Kimi k1.5)",
        ),
        (
            f"objective.ratio: got '{o.ratio}'",
            plain and o.ratio != "none",
            f"'none': surrogate '{surrogate}' looks at no ratio",
        ),
        (
            f"objective.clip: got '{clip}'",
            clip != "none" and (plain or o.ratio == "none"),
            f"'none': with surrogate '{surrogate}' and ratio '{o.ratio}' there is no ratio to clip",
        ),
        (
            f"group_size: got {group_size}",
            by_group and group_size < 2,
            "at least 2 for statistics of a group",
        ),
        *_credit_rules(o),
        *_kl_rules(o),
    ]


def _credit_rules(o: Objective) -> list[tuple[str, bool, str]]:
    baseline, credit = o.baseline.kind, o.credit
    scale, per_token = f"objective.scale: got '{o.scale}'", baseline == "value" or credit.kind == "process"
    return [
        (
            scale,
            baseline == "value" and o.scale not in ("none", "whiten"),
            "'none' or 'whiten': a value network gives an advantage per token, not a reward per sample",
        ),
        (
            scale,
            baseline == "none" and o.scale == "whiten",
            "another, or baseline 'batch_mean': whitening takes the mean away, which is a baseline",
        ),
        (
            scale,
            credit.kind == "process" and o.scale not in ("none", "group_std"),
            "'none' or 'group_std': step rewards are normalised within their group (arXiv 2402.03300, 4.1.3)",
        ),
        (
            f"objective.baseline: got '{baseline}'",
            credit.kind == "process" and baseline != "group_mean",
            "'group_mean': the baseline of a step is the mean of its group's steps (arXiv 2402.03300, 4.1.3)",
        ),
        (
            f"objective.ratio: got '{o.ratio}'",
            o.ratio == "sequence" and per_token,
            "'token': a ratio per sequence cannot tell the advantages of its tokens apart",
        ),
        (
            f"objective.surrogate: got '{o.surrogate.kind}'",
            o.surrogate.kind == "squared_log_ratio" and per_token,
            "another: the squared log-ratio has one advantage per sequence",
        ),
    ]


def _kl_rules(o: Objective) -> list[tuple[str, bool, str]]:
    kl = o.kl
    place, estimator = kl.kind, kl.estimator if isinstance(kl, ReferenceKL) else "none"
    groups, drops = f"objective.groups: got '{o.groups.kind}'", o.groups.kind == "drop_constant"
    return [
        (
            f"objective.kl.estimator: got '{estimator}'",
            place == "in_reward" and estimator != "k1",
            "'k1': in the reward the others have a wrong gradient",
        ),
        (
            f"objective.kl.estimator: got '{estimator}'",
            place == "in_loss" and estimator == "k1",
            "'k2', 'k3' or 'k3_corrected': the gradient of k1 in the loss is 0 in expectation",
        ),
        (
            groups,
            drops and o.baseline.kind not in GROUP_BASELINES,
            f"'keep_all': with baseline '{o.baseline.kind}' a group of equal rewards teaches too",
        ),
        (
            groups,
            drops and place == "in_reward",
            "'keep_all': with the KL in the reward no group is constant",
        ),
    ]
