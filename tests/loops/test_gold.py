import dataclasses
import itertools

import numpy as np
import pytest
import torch

from posttrain.engine.policy import frozen_copy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.evals.judge import Judged, margin
from posttrain.loops.divergence import divergences
from posttrain.loops.gold import gold_score, gold_scorer, look_at_scores
from posttrain.loops.pairs import judged
from posttrain.loops.rl_batch import as_group
from posttrain.loops.rl_step import token_ids
from posttrain.loops.sample import sample_problems
from posttrain.loops.scoring import score
from tests.loops.samples import made
from tests.loops.toy import GENERATION, PROBLEMS, sampler_of, start_policy


def test_gold_by_hand():
    assert gold_score(Judged(True, True, 30), limit=60) == 5.5
    assert gold_score(Judged(False, True, 60), limit=60) == 1.0
    assert gold_score(Judged(True, False, 15), limit=60) == 3.75


def test_gold_orders_as_the_judge_does():
    """Every two of all levels, ties included: the signs of the margin and of the difference are equal."""
    every = [Judged(c, s, t) for c in (True, False) for s in (True, False) for t in (1, 30, 59, 60)]
    for first, second in itertools.product(every, repeat=2):
        difference = gold_score(first, limit=60) - gold_score(second, limit=60)
        assert np.sign(difference) == np.sign(margin(first, second))


def test_the_reward_term_is_the_score_of_the_samples():
    group = [
        made(5),
        made(9, status="wrong"),
        made(7, thinking="3 плюс 4"),
        made(4, thinking=""),
        made(6, status="unverified"),
    ]
    group[2] = dataclasses.replace(group[2], mixed=True)
    (rewards,) = gold_scorer([as_group(group, 60)])
    assert rewards == [gold_score(judged(sample), limit=60) for sample in group]
    assert rewards[2] == pytest.approx(4 - 7 / 60) and rewards[4] == pytest.approx(2 - 6 / 60)


@pytest.fixture(scope="module")
def moved():
    """A policy and what it was before."""
    policy = start_policy()
    reference = frozen_copy(policy.model)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.02)
    return policy, reference


def test_a_look_is_the_mean_over_a_problems_samples(moved):
    policy, reference = moved
    proxy = with_scalar_head(reference, seed=3)
    axes = {"samples": 3, "generation": GENERATION, "seed": 4}
    look, small = (
        look_at_scores(
            sampler_of(policy), policy, reference, PROBLEMS, {"proxy": proxy}, micro_batch_tokens=tokens, **axes
        )
        for tokens in (4096, 64)
    )
    assert set(look) == {"gold", "proxy", "accuracy", "tokens", "kl"}
    for name, value_Q in look.items():
        assert value_Q.shape == (len(PROBLEMS),) and value_Q == pytest.approx(small[name], abs=1e-4), name
    # Toy answers are in one script: gold is what accuracy and length make of it.
    assert look["gold"] == pytest.approx(4 * look["accuracy"] + 2 - look["tokens"] / GENERATION.max_new_tokens)
    assert (look["kl"] > 0).all()
    still = look_at_scores(
        sampler_of(policy), policy, frozen_copy(policy.model), PROBLEMS, {}, micro_batch_tokens=4096, **axes
    )
    assert still["kl"] == pytest.approx(np.zeros(4), abs=1e-6) and set(still) == set(look) - {"proxy"}


def test_divergence_is_what_log_ratios_estimate(moved):
    """Mean of log(policy / reference) over many samples, within four standard errors; and no less than 0 in each."""
    policy, reference = moved
    groups = sample_problems(
        sampler_of(policy), policy.tokenizer, PROBLEMS, mode="think", samples=100, generation=GENERATION, seed=9
    )
    responses = [token_ids(sample.rollout) for group in groups for sample in group]
    exact = divergences(policy.model, reference, responses, temperature=1.0, micro_batch_tokens=4096)
    ours, theirs = (
        score(model, responses, micro_batch_tokens=4096, temperature=1.0) for model in (policy.model, reference)
    )
    ratios = np.array([float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)])
    kl = np.array([one.kl for one in exact])
    assert (kl > -1e-6).all() and all(one.entropy > 0 for one in exact)
    assert abs((ratios - kl).mean()) < 4 * (ratios - kl).std() / len(kl) ** 0.5
