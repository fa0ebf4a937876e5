"""Who judges, and how noisily, as section `prefer` says: its choices as functions, each chosen once, by kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

from transformers import PreTrainedModel

from posttrain.config import Engine, Prefer
from posttrain.config_fields import ConfigError
from posttrain.config_preference import (
    AnnotatorNoise,
    BradleyTerryNoise,
    FileJudge,
    FlipNoise,
    ModelJudge,
    RuleJudge,
)
from posttrain.engine.policy import Policy
from posttrain.engine.scalar_head import load_reward_model
from posttrain.evals.annotators import Annotation, bradley_terry, each_annotator, flip, majority
from posttrain.evals.judge import Ordered
from posttrain.loops.pairs import Judge, make_pairs, rule_judge
from posttrain.loops.reward_scores import score_responses
from posttrain.loops.sample import Sample
from posttrain.records import DataError, Pair

VOTES: Mapping[str, Callable[..., list[bool]]] = {"majority": majority, "each": each_annotator}


def preference_pairs(
    groups: Sequence[Sequence[Sample]], policy: Policy, *, section: Prefer, engine: Engine, seed: int
) -> list[Pair]:
    """Pairs of samples of `policy`, judged, labelled and split as stage prefer does it."""
    return make_pairs(
        groups,
        judge=choose_judge(section.judge, policy, engine=engine),
        annotate=choose_annotation(section.noise),
        per_problem=section.max_pairs_per_problem,
        heldout_share=section.heldout_share,
        seed=seed,
    )


def choose_judge(judge: RuleJudge | ModelJudge | FileJudge, policy: Policy, *, engine: Engine) -> Judge:
    """The judge of a section; raises ModelError for a folder that holds no reward model, ConfigError for a file."""
    match judge:
        case RuleJudge():
            return rule_judge(judge.kind)
        case ModelJudge():
            folder = Path(judge.path)
            model = load_reward_model(folder, policy.tokenizer, precision=engine.precision).to(policy.model.device)
            return reward_judge(model, str(folder), micro_batch_tokens=engine.micro_batch_tokens)
    raise ConfigError(f"prefer.judge: got '{judge.kind}', wanted one that can judge fresh samples")


def reward_judge(model: PreTrainedModel, folder: str, *, micro_batch_tokens: int) -> Judge:
    """Every two samples of a prompt by their rewards; the margin is the difference, and equal rewards are a tie.

    A reward that is no number raises DataError with the problem.
    """

    def order(groups: Sequence[Sequence[Sample]]) -> list[list[Ordered]]:
        flat = [sample for group in groups for sample in group]
        responses = [(sample.rollout.prompt_ids, sample.rollout.response_ids) for sample in flat]
        rewards = score_responses(model, responses, micro_batch_tokens=micro_batch_tokens)
        for sample, reward in zip(flat, rewards, strict=True):
            if not math.isfinite(reward):
                raise DataError(f"{folder}: problem '{sample.problem.id}': got a reward of {reward}, wanted a number")
        given = iter(rewards)
        return [reward_pairs([next(given) for _ in group]) for group in groups]

    return Judge("reward_model", order)


def reward_pairs(rewards_G: Sequence[float]) -> list[Ordered]:
    """Every two samples of different reward."""
    pairs = []
    for i, j in combinations(range(len(rewards_G)), 2):
        better, worse = (i, j) if rewards_G[i] > rewards_G[j] else (j, i)
        if rewards_G[better] > rewards_G[worse]:
            pairs.append((better, worse, rewards_G[better] - rewards_G[worse]))
    return pairs


def choose_annotation(noise: FlipNoise | BradleyTerryNoise | AnnotatorNoise) -> Annotation:
    """How labels come about."""
    match noise:
        case FlipNoise():
            return partial(flip, rate=noise.rate)
        case BradleyTerryNoise():
            return partial(bradley_terry, temperature=noise.temperature)
        case AnnotatorNoise():
            return partial(VOTES[noise.labels], rates=noise.rates)
