"""Section `prefer` as functions: who judges, and how noisily."""

import math
import random
from functools import partial

import pytest
import torch

from posttrain.config import ConfigError
from posttrain.config_preference import AnnotatorNoise, BradleyTerryNoise, FileJudge, FlipNoise, ModelJudge, RuleJudge
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.errors import ModelError
from posttrain.evals.annotators import AS_JUDGED, bradley_terry, each_annotator, flip, majority
from posttrain.loops.judges import choose_annotation, choose_judge, reward_judge, reward_pairs
from posttrain.loops.pairs import check_pairs, make_pairs
from posttrain.loops.reward_scores import score_responses
from posttrain.loops.sample import sample_problems
from posttrain.records import DataError
from tests.loops.toy import ENGINE, GENERATION, PROBLEMS, sampler_of, start_policy


@pytest.fixture(scope="module")
def policy():
    return start_policy()


@pytest.fixture(scope="module")
def groups(policy):
    return sample_problems(
        sampler_of(policy), policy.tokenizer, PROBLEMS, mode="think", samples=6, generation=GENERATION, seed=1
    )


@pytest.fixture(scope="module")
def model(policy):
    return with_scalar_head(policy.model, seed=3)


def test_reward_pairs_by_hand():
    assert reward_pairs([1.0, 3.0, 1.0]) == [(1, 0, 2.0), (1, 2, 2.0)]
    assert reward_pairs([2.0]) == reward_pairs([2.0, 2.0]) == []


def test_the_reward_model_orders_by_its_scores(policy, groups, model):
    pairs = make_pairs(
        groups,
        judge=reward_judge(model, "m", micro_batch_tokens=4096),
        annotate=AS_JUDGED,
        per_problem=3,
        heldout_share=0.0,
        seed=0,
    )
    check_pairs(pairs, "prefer")
    sides = [(p.prompt_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    rewards = score_responses(model, sides, micro_batch_tokens=4096)
    assert len(pairs) > 4
    for pair, chosen, rejected in zip(pairs, rewards[::2], rewards[1::2], strict=True):
        assert pair.margin == pytest.approx(chosen - rejected, abs=1e-5) and pair.margin > 0
        assert pair.judge == "reward_model"


def test_a_reward_that_is_no_number_names_the_problem(policy, groups, model):
    broken = with_scalar_head(policy.model, seed=3)
    with torch.no_grad():
        broken.score.weight.fill_(math.nan)
    with pytest.raises(DataError, match="judges/m: problem 'p0': got a reward of nan, wanted a number"):
        reward_judge(broken, "judges/m", micro_batch_tokens=4096).order(groups)


def test_a_judge_is_chosen_by_kind(policy, groups, model, tmp_path):
    rule = choose_judge(RuleJudge(kind="rule"), policy, engine=ENGINE)
    assert rule.name == "rule"
    save_policy(Policy(model, policy.tokenizer), tmp_path / "judge")
    learned = choose_judge(ModelJudge(kind="reward_model", path=str(tmp_path / "judge")), policy, engine=ENGINE)
    assert learned.order(groups) == reward_judge(model, "m", micro_batch_tokens=4096).order(groups)
    with pytest.raises(ModelError, match="absent: cannot be loaded as a reward model"):
        choose_judge(ModelJudge(kind="reward_model", path=str(tmp_path / "absent")), policy, engine=ENGINE)
    with pytest.raises(ConfigError, match=r"prefer.judge: got 'file', wanted one that can judge fresh samples"):
        choose_judge(FileJudge(kind="file", path="pairs.jsonl"), policy, engine=ENGINE)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (FlipNoise(kind="flip", rate=0.3), partial(flip, rate=0.3)),
        (BradleyTerryNoise(kind="bradley_terry", temperature=2.0), partial(bradley_terry, temperature=2.0)),
        (AnnotatorNoise(kind="annotators", rates=(0.1, 0.4), labels="each"), partial(each_annotator, rates=(0.1, 0.4))),
        (AnnotatorNoise(kind="annotators", rates=(0.1, 0.2, 0.4), labels="majority"),
         partial(majority, rates=(0.1, 0.2, 0.4))),
    ],
)  # fmt: skip
def test_noise_is_chosen_by_kind(noise, expected):
    one, other = random.Random(5), random.Random(5)
    found = choose_annotation(noise)
    assert [found(1.0, one) for _ in range(200)] == [expected(1.0, other) for _ in range(200)]
