"""The gold score: the world's judge as a number for single responses, and proxies beside it on a policy's own samples.

Of two responses to a prompt the one that posttrain.evals.judge prefers has the higher gold score. Preference pairs are
labelled by that judge, so gold is what reward models are a proxy of; and it has no noise, unlike its labels.

Shapes: Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.evals.intervals import Floats
from posttrain.evals.judge import CORRECT_UNITS, SCRIPT_UNITS, Judged
from posttrain.loops.divergence import divergences
from posttrain.loops.pairs import judged
from posttrain.loops.reward_scores import score_responses
from posttrain.loops.rl_step import token_ids
from posttrain.loops.sample import Sample, sample_problems
from posttrain.records import Problem
from posttrain.rewards.language import is_mixed, main_script
from posttrain.rewards.terms import Group

GOLD = "gold"
"""Name of the reward term and of the measurement."""


def gold_score(response: Judged, *, limit: int) -> float:
    """The judge's levels on one scale, in (-1, 6]: each outweighs all below it; length in units of the token limit."""
    return CORRECT_UNITS * response.correct + SCRIPT_UNITS * response.single_script - response.tokens / limit


def gold_scorer(groups: Sequence[Group]) -> list[list[float]]:
    """The gold score as a reward term: RL on it is the control of RL on a proxy."""
    return [
        [
            gold_score(
                Judged(
                    sample.verdict.status == "correct",
                    not is_mixed(
                        sample.parts.thinking or sample.parts.answer, target=main_script(group.problem.prompt)
                    ),
                    len(sample.response_ids),
                ),
                limit=group.max_tokens,
            )
            for sample in group.samples
        ]
        for group in groups
    ]


def score_samples(
    groups: Sequence[Sequence[Sample]], proxies: Mapping[str, PreTrainedModel], *, limit: int, micro_batch_tokens: int
) -> dict[str, list[list[float]]]:
    """Score -> a number for every sample: `gold`, and every proxy by its name. `limit`: of tokens, as sampled."""
    flat = [token_ids(sample.rollout) for group in groups for sample in group]
    scored = {GOLD: [[gold_score(judged(sample), limit=limit) for sample in group] for group in groups]}
    for name, model in proxies.items():
        values = iter(score_responses(model, flat, micro_batch_tokens=micro_batch_tokens))
        scored[name] = [[next(values) for _ in group] for group in groups]
    return scored


def look_at_scores(
    rollouts: RolloutEngine,
    policy: Policy,
    reference: PreTrainedModel,
    problems: Sequence[Problem],
    proxies: Mapping[str, PreTrainedModel],
    *,
    samples: int,
    generation: config.Generation,
    seed: int,
    micro_batch_tokens: int,
) -> dict[str, Floats]:
    """What `samples` answers of `policy` to each problem are worth, as means over a problem's samples, each [Q].

    `gold`, every proxy by its name, `accuracy`, `tokens`, and `kl`: nats per response from `reference`, exact at every
    token. The same draws each time. Other models are brought to the policy's device, which a trainer chooses.
    """
    for model in (reference, *proxies.values()):
        model.to(policy.model.device)
    groups = sample_problems(
        rollouts, policy.tokenizer, problems, mode="think", samples=samples, generation=generation, seed=seed
    )
    scored = score_samples(groups, proxies, limit=generation.max_new_tokens, micro_batch_tokens=micro_batch_tokens)
    distances = divergences(
        policy.model,
        reference,
        [token_ids(sample.rollout) for group in groups for sample in group],
        temperature=generation.temperature,
        micro_batch_tokens=micro_batch_tokens,
    )
    values = {name: np.array(values_QK) for name, values_QK in scored.items()} | {
        "accuracy": np.array([[float(sample.correct) for sample in group] for group in groups]),
        "tokens": np.array([[float(sample.tokens) for sample in group] for group in groups]),
        "kl": np.array([distance.kl for distance in distances]).reshape(len(problems), samples),
    }
    return {name: values_QK.mean(1) for name, values_QK in values.items()}
