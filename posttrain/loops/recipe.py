"""An objective of params.yaml as functions: each axis chosen once, by name, from its table.

What a published method is stands in objectives/<method>.yaml; what each choice does stands in the tables' own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from posttrain.config_rl import (
    AdaptiveKL,
    DroppedGroups,
    DualClip,
    NoClip,
    Objective,
    PpoClip,
    ProcessCredit,
    ReferenceKL,
    SamplerCorrection,
    SquaredLogRatio,
    StepSource,
    TruncationPenalty,
    TruncationReward,
    ValueBaseline,
    refuse_contradictions,
)
from posttrain.losses import policy
from posttrain.losses.kl import ESTIMATORS
from posttrain.losses.reduce import AGGREGATES, Aggregate
from posttrain.rl.advantages import BASELINES, SCALES, Statistic, no_baseline
from posttrain.rl.truncation import TRUNCATIONS, Truncation

Surrogate = Callable[["Recipe", Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(recipe, policy_BT, old_BT, mask_BT, advantages_BT) -> (loss per token, 1 where a bound was reached)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Functions and numbers of one objective."""

    baseline: Statistic
    """Of samples; with a value network there is none."""
    value: ValueBaseline | None
    scale: Statistic
    whiten: bool
    credit: str
    """`outcome`, `process` or `value`: key of posttrain.loops.credit.CREDITS."""
    steps: StepSource | None
    """Where step rewards come from, see posttrain.loops.steps."""
    outcome_weight: float
    """Of the outcome's advantage beside step rewards."""
    truncation: Truncation
    truncation_amount: float
    mask_truncated: bool
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    clip: policy.Clip
    clip_low: float
    clip_high: float
    clip_dual: float
    surrogate: Surrogate
    tau: float
    reset_optimizer: bool
    aggregate: Aggregate
    correction: policy.Correction
    correction_cap: float
    drop_constant: bool
    """Constant groups are replaced by new ones, instead of counting as groups that teach nothing."""
    refills: int
    kl: Callable[[Tensor, Tensor, Tensor], Tensor]
    kl_in_loss: float
    kl_in_reward: float
    """Coefficients; 0 where the KL is not."""
    kl_controller: AdaptiveKL | None
    reset_reference: int

    def with_kl(self, coefficient: float) -> Recipe:
        """The same with another coefficient, where the KL is."""
        return replace(
            self,
            kl_in_loss=coefficient if self.kl_in_loss else 0.0,
            kl_in_reward=coefficient if self.kl_in_reward else 0.0,
        )


def _clipped(
    recipe: Recipe, policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor
) -> tuple[Tensor, Tensor]:
    log_ratio_BT = recipe.ratio(policy_BT, old_BT, mask_BT)
    bounds = {"low": recipe.clip_low, "high": recipe.clip_high, "dual": recipe.clip_dual}
    return recipe.clip(log_ratio_BT, policy_BT, advantages_BT, **bounds)


def _reinforce(
    recipe: Recipe, policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor
) -> tuple[Tensor, Tensor]:
    return policy.reinforce(policy_BT, advantages_BT), mask_BT.new_zeros(mask_BT.shape)


def _positives_only(
    recipe: Recipe, policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor
) -> tuple[Tensor, Tensor]:
    return policy.positives_only(policy_BT, advantages_BT), mask_BT.new_zeros(mask_BT.shape)


def _squared(
    recipe: Recipe, policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor
) -> tuple[Tensor, Tensor]:
    loss_BT = policy.squared_log_ratio(policy_BT, old_BT, mask_BT, advantages_BT, tau=recipe.tau)
    return loss_BT, mask_BT.new_zeros(mask_BT.shape)


SURROGATES: Mapping[str, Surrogate] = {
    "clipped": _clipped,
    "reinforce": _reinforce,
    "positives_only": _positives_only,
    "squared_log_ratio": _squared,
}

UNUSED = 1.0
"""Number of a choice that was not made: no function looks at it."""


def choose_recipe(objective: Objective, *, group_size: int) -> Recipe:
    """The functions of an objective; raises ConfigError where its choices contradict each other."""
    refuse_contradictions(objective, group_size=group_size)
    baseline, credit, clip, kl = objective.baseline, objective.credit, objective.clip, objective.kl
    value = baseline if isinstance(baseline, ValueBaseline) else None
    place = kl.kind
    return Recipe(
        baseline=no_baseline if value else BASELINES[baseline.kind],
        value=value,
        scale=SCALES[objective.scale],
        whiten=objective.scale == "whiten",
        credit="value" if value else credit.kind,
        steps=credit.steps if isinstance(credit, ProcessCredit) else None,
        outcome_weight=credit.outcome if isinstance(credit, ProcessCredit) else UNUSED,
        truncation=TRUNCATIONS[objective.truncated.kind],
        truncation_amount=_truncation_amount(objective),
        mask_truncated=objective.truncated.kind == "mask",
        ratio=policy.RATIOS[objective.ratio],
        clip=policy.CLIPS[clip.kind],
        clip_low=clip.low if isinstance(clip, PpoClip | DualClip) else UNUSED,
        clip_high=UNUSED if isinstance(clip, NoClip) else clip.high,
        clip_dual=clip.bound if isinstance(clip, DualClip) else UNUSED,
        surrogate=SURROGATES[objective.surrogate.kind],
        tau=objective.surrogate.tau if isinstance(objective.surrogate, SquaredLogRatio) else 0.0,
        reset_optimizer=isinstance(objective.surrogate, SquaredLogRatio) and objective.surrogate.reset_optimizer,
        aggregate=AGGREGATES[objective.aggregate],
        correction=policy.CORRECTIONS[objective.correction.kind],
        correction_cap=objective.correction.cap if isinstance(objective.correction, SamplerCorrection) else UNUSED,
        drop_constant=objective.groups.kind == "drop_constant",
        refills=objective.groups.refills if isinstance(objective.groups, DroppedGroups) else 0,
        kl=ESTIMATORS[kl.estimator if isinstance(kl, ReferenceKL) else "k3"],
        kl_in_loss=kl.coefficient if isinstance(kl, ReferenceKL) and place == "in_loss" else 0.0,
        kl_in_reward=kl.coefficient if isinstance(kl, ReferenceKL) and place == "in_reward" else 0.0,
        kl_controller=kl.controller if isinstance(kl, ReferenceKL) and isinstance(kl.controller, AdaptiveKL) else None,
        reset_reference=kl.reset_reference if isinstance(kl, ReferenceKL) else 0,
    )


def _truncation_amount(objective: Objective) -> float:
    match objective.truncated:
        case TruncationPenalty(penalty=amount) | TruncationReward(reward=amount):
            return amount
    return UNUSED
