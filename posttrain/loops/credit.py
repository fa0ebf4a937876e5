"""Which token gets what: from the rewards of a step's samples to an advantage for every token of them.

Three ways, chosen by the objective: all tokens of a response alike (outcome), by the steps that are still to come
(process), or by what a value network thought would come (value).

Shapes: P prompts, G samples of a group, T tokens of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.loops.recipe import Recipe
from posttrain.rl.advantages import advantages, whiten
from posttrain.rl.gae import gae, token_rewards
from posttrain.rl.process import StepReward, process_advantages


@dataclass(frozen=True, slots=True)
class Credit:
    """What the tokens of one response are credited with; float64."""

    advantages_T: Tensor
    values_T: Tensor | None = None
    """What the value network predicted when the response was sampled."""
    returns_T: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rewarded:
    """The samples of a step and all that is known of their worth."""

    scores_PG: Tensor
    """Rewards without the KL, float64."""
    rewards_PG: Tensor
    """Minus the KL of the whole response, where the objective has it in the reward."""
    valid_PG: Tensor
    """bool; False where there is no verdict."""
    trained_PG: Tensor
    """bool; False where the response is left out of the loss."""
    lengths: Sequence[Sequence[int]]
    k1: Sequence[Sequence[Tensor]]
    """Per token; empty where the objective has no KL in the reward."""
    steps: Sequence[Sequence[Sequence[StepReward]]]
    """Empty where the credit is not by steps."""
    values: Sequence[Sequence[Tensor]]
    """Per token; empty without a value network."""


def outcome_credit(rewarded: Rewarded, recipe: Recipe) -> list[list[Credit]]:
    """(reward - baseline) / scale of the response, at each of its tokens."""
    advantages_PG = _outcome(rewarded, recipe)
    return [
        [Credit(advantage.repeat(length)) for advantage, length in zip(row_G, lengths_G, strict=True)]
        for row_G, lengths_G in zip(advantages_PG, rewarded.lengths, strict=True)
    ]


def process_credit(rewarded: Rewarded, recipe: Recipe) -> list[list[Credit]]:
    """Normalised rewards of the steps to come, and a share of the outcome's advantage; 0 without a verdict."""
    outcome_PG = recipe.outcome_weight * _outcome(rewarded, recipe)
    credits = []
    for p, lengths_G in enumerate(rewarded.lengths):
        steps_G = [steps if valid else [] for steps, valid in zip(rewarded.steps[p], rewarded.valid_PG[p], strict=True)]
        rows = process_advantages(steps_G, lengths_G, baseline=recipe.baseline, scale=recipe.scale)
        credits.append([Credit(row_T + outcome) for row_T, outcome in zip(rows, outcome_PG[p], strict=True)])
    return credits


def value_credit(rewarded: Rewarded, recipe: Recipe) -> list[list[Credit]]:
    """GAE on the reward at the last token and the KL at each; without a verdict nothing is learnt."""
    return [
        [
            _value_credit(k1_T, values_T, score if valid else None, recipe)
            for k1_T, values_T, score, valid in zip(k1_G, values_G, scores_G.tolist(), valid_G.tolist(), strict=True)
        ]
        for k1_G, values_G, scores_G, valid_G in zip(
            rewarded.k1 or _no_k1(rewarded.lengths), rewarded.values, rewarded.scores_PG, rewarded.valid_PG, strict=True
        )
    ]


def _value_credit(k1_T: Tensor, values_T: Tensor, score: float | None, recipe: Recipe) -> Credit:
    values_T = values_T.double()
    if score is None or recipe.value is None:
        return Credit(torch.zeros_like(values_T), values_T, values_T)
    rewards_T = token_rewards(k1_T, score, coefficient=recipe.kl_in_reward)
    advantages_T, returns_T = gae(rewards_T, values_T, gamma=recipe.value.gamma, lam=recipe.value.lam)
    return Credit(advantages_T, values_T, returns_T)


def _no_k1(lengths: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    return [[torch.zeros(length) for length in lengths_G] for lengths_G in lengths]


def _outcome(rewarded: Rewarded, recipe: Recipe) -> Tensor:
    return advantages(rewarded.rewards_PG, rewarded.valid_PG, baseline=recipe.baseline, scale=recipe.scale)


CREDITS: Mapping[str, Callable[[Rewarded, Recipe], list[list[Credit]]]] = {
    "outcome": outcome_credit,
    "process": process_credit,
    "value": value_credit,
}


def assign_credit(rewarded: Rewarded, recipe: Recipe) -> list[list[Credit]]:
    """The credit of every sample, whitened over all trained tokens where the objective wants it."""
    credits = CREDITS[recipe.credit](rewarded, recipe)
    if not recipe.whiten:
        return credits
    trained = (rewarded.trained_PG & rewarded.valid_PG).flatten().tolist()
    white = iter(whiten([credit.advantages_T for group in credits for credit in group], trained))
    return [[replace(credit, advantages_T=next(white)) for credit in group] for group in credits]
