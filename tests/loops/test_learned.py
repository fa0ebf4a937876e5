import copy
import dataclasses

import pytest

from posttrain.config import ConfigError
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import load_reward_model, with_scalar_head
from posttrain.errors import ModelError
from posttrain.loops.learned import learned_scorer
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.reward_model import margins
from posttrain.loops.reward_scores import score_responses
from posttrain.loops.rl import run_rl
from posttrain.rewards.total import make_terms, total_rewards
from tests.loops.test_preference import pairs
from tests.loops.toy import ENGINE, PROBLEMS, Journal, rl_section, sampler_of, start_policy
from tests.rewards.groups import group, sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("reward_model")
    policy = start_policy()
    save_policy(Policy(with_scalar_head(policy.model, seed=3), policy.tokenizer), place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_reward_model(folder, start_policy().tokenizer, precision="fp32")


def test_scores_are_those_of_the_trained_model(model):
    """Against the stage's own margins, which score both sides of a pair in one batch."""
    both = [pair_ids(start_policy().tokenizer, pair) for pair in pairs()]
    flat = score_responses(model, [side for pair in both for side in pair], micro_batch_tokens=4096)
    wanted = margins(model, both, micro_batch_tokens=4096)
    assert [a - b for a, b in zip(flat[::2], flat[1::2], strict=True)] == pytest.approx(wanted, abs=1e-5)


def test_batches_do_not_matter_and_the_prompt_does(model):
    groups = [group(sample(ids=(3, 4, 5)), sample(ids=(3,))), group(sample(ids=tuple(range(3, 20))))]
    large, small = (learned_scorer(model, micro_batch_tokens=tokens)(groups) for tokens in (4096, 1))
    assert [len(rewards) for rewards in large] == [2, 1]
    for one, other in zip(large, small, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    asked_otherwise = dataclasses.replace(groups[0], prompt_ids=(8, 7))
    assert learned_scorer(model, micro_batch_tokens=4096)([asked_otherwise])[0] != pytest.approx(large[0], abs=1e-5)


def test_the_loop_is_rewarded_by_the_model(model, tmp_path):
    """Its mean is logged under its name, and all of the step's samples are scored together."""
    calls = []
    scorer = learned_scorer(model, micro_batch_tokens=4096)

    def counted(groups):
        calls.append(sum(len(g.samples) for g in groups))
        return scorer(groups)

    policy, journal = start_policy(), Journal()
    run_rl(
        policy,
        PROBLEMS,
        section=rl_section(steps=1, rewards={"learned": {"weight": 2.0, "start": 0, "ramp": 0}}),
        rollouts=sampler_of(policy),
        engine=ENGINE,
        seed=5,
        log=journal,
        checkpoints=tmp_path,
        measure=dict,
        measure_at=(),
        scorers={"learned": counted},
    )
    metrics = journal.rows[0][1]
    assert calls == [32]
    assert metrics["reward/total"] == pytest.approx(2.0 * metrics["reward/learned"])
    assert metrics["reward/learned_weight"] == 2.0


@pytest.mark.parametrize("name", ["learned", "acuracy", "no_such_module:brevity"])
def test_a_term_that_is_not_there_stops_the_run_before_it_samples(name, tmp_path):
    class NoSampler:
        version = 0

    policy = start_policy()
    with pytest.raises(ConfigError, match=name):
        run_rl(
            policy,
            PROBLEMS,
            section=rl_section(steps=1, rewards={name: {"weight": 1.0, "start": 0, "ramp": 0}}),
            rollouts=NoSampler(),
            engine=ENGINE,
            seed=5,
            log=Journal(),
            checkpoints=tmp_path,
            measure=dict,
            measure_at=(),
        )


def test_what_is_no_reward_model_is_refused(tmp_path, folder):
    policy = start_policy()
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        load_reward_model(tmp_path / "nowhere", policy.tokenizer, precision="fp32")
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(ModelError, match=r"no weights for score.weight; wanted: a model of stage reward_model"):
        load_reward_model(tmp_path / "policy", policy.tokenizer, precision="fp32")
    other = copy.deepcopy(policy.tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(ModelError, match="its tokenizer is not the policy's"):
        load_reward_model(folder, other, precision="fp32")


def test_the_term_is_summed_like_any_other(model):
    terms = make_terms(["learned", "accuracy"], scorers={"learned": learned_scorer(model, micro_batch_tokens=64)})
    ((totals, own),) = total_rewards([group(sample(ids=(3, 4)))], {"learned": 0.5, "accuracy": 1.0}, terms)
    assert totals == [pytest.approx(0.5 * own["learned"][0] + 1.0)]
