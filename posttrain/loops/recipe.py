"""An objective of params.yaml as functions: each axis chosen once, by name, from its table.

What a published method is stands in objectives/<method>.yaml; what each choice does stands in the tables' own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from posttrain.config import ConfigError, Objective
from posttrain.losses import policy
from posttrain.losses.kl import ESTIMATORS
from posttrain.losses.reduce import AGGREGATES, Aggregate
from posttrain.rl.advantages import BASELINES, SCALES, Statistic

Surrogate = Callable[["Recipe", Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(recipe, policy_BT, old_BT, mask_BT, advantages_BT) -> (loss per token, 1 where a bound was reached)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Functions and numbers of one objective."""

    baseline: Statistic
    scale: Statistic
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    clip: policy.Clip
    clip_low: float
    clip_high: float
    clip_dual: float
    surrogate: Surrogate
    tau: float
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

CREDITS: Mapping[str, None] = {"outcome": None}
"""One advantage for all tokens of a response."""

GROUPS: Mapping[str, bool] = {"keep_all": False, "drop_constant": True}

Choice = TypeVar("Choice")


def choose_recipe(objective: Objective, *, group_size: int) -> Recipe:
    """The functions of an objective; raises ConfigError naming the axis, the value got and the values there are."""
    _pick(CREDITS, "credit", objective.credit)
    recipe = Recipe(
        baseline=_pick(BASELINES, "baseline", objective.baseline),
        scale=_pick(SCALES, "scale", objective.scale),
        ratio=_pick(policy.RATIOS, "ratio", objective.ratio),
        clip=_pick(policy.CLIPS, "clip", objective.clip),
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        clip_dual=objective.clip_dual,
        surrogate=_pick(SURROGATES, "surrogate", objective.surrogate),
        tau=objective.tau,
        aggregate=_pick(AGGREGATES, "aggregate", objective.aggregate),
        correction=_pick(policy.CORRECTIONS, "correction", objective.correction),
        correction_cap=objective.correction_cap,
        drop_constant=_pick(GROUPS, "groups", objective.groups),
        refills=objective.refills,
        kl=ESTIMATORS[objective.kl.estimator],
        kl_in_loss=objective.kl.coefficient if objective.kl.place == "in_loss" else 0.0,
        kl_in_reward=objective.kl.coefficient if objective.kl.place == "in_reward" else 0.0,
    )
    _refuse_combinations(objective, group_size)
    return recipe


def _pick(table: Mapping[str, Choice], axis: str, name: str) -> Choice:
    if name not in table:
        raise ConfigError(f"objective.{axis}: got '{name}', wanted one of {', '.join(table)}")
    return table[name]


def _refuse_combinations(objective: Objective, group_size: int) -> None:
    """Choices that are each right and together wrong."""
    if objective.ratio == "sequence" and objective.aggregate != "sequence_mean":
        raise ConfigError(
            f"objective.aggregate: got '{objective.aggregate}', wanted 'sequence_mean': a ratio per sequence is "
            "normalised by length, and so must its loss be (GSPO)"
        )
    if objective.surrogate == "squared_log_ratio" and objective.aggregate not in ("sequence_sum", "constant"):
        raise ConfigError(
            f"objective.aggregate: got '{objective.aggregate}', wanted 'sequence_sum' or 'constant': the squared "
            "log-ratio belongs to whole sequences (Kimi k1.5)"
        )
    if group_size < 2 and (objective.baseline in ("group_mean", "leave_one_out") or objective.scale == "group_std"):
        raise ConfigError(f"group_size: got {group_size}, wanted at least 2 for statistics of a group")
    if objective.kl.place == "in_reward" and objective.kl.estimator != "k1":
        raise ConfigError(
            f"objective.kl.estimator: got '{objective.kl.estimator}', wanted 'k1': in the reward the others have a "
            "wrong gradient"
        )
