"""The best weights that the looks have seen: kept, found again after a kill, and reported."""

import pytest
import torch

from posttrain.engine.checkpoint import latest_checkpoint
from posttrain.errors import StageError
from posttrain.loops.best import BestWeights, best_step
from posttrain.loops.heldout import look_at_heldout
from posttrain.loops.policy_training import train_policy
from tests.loops.toy import (
    ENGINE,
    GENERATION,
    PROBLEMS,
    Journal,
    rl_section,
    same_weights,
    sampler_of,
    start_policy,
    weights_of,
)


def changed(policy, value):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(value)
    return weights_of(policy)


def see(best, policy, looks, step, value):
    """The policy with other weights, and its look."""
    weights = changed(policy, step / 100)
    looks[str(step)] = {"gold": value}
    best.see(looks)
    return weights


def test_the_weights_of_the_best_look_come_back(tmp_path):
    policy, looks = start_policy(), {"0": {"gold": 1.0}}
    best = BestWeights(policy, "gold", tmp_path)
    seen = {step: see(best, policy, looks, step, value) for step, value in ((2, 2.0), (4, 3.0), (6, 2.5), (8, 2.9))}
    assert best.restore(looks, start_policy().model) == 4 and same_weights(weights_of(policy), seen[4])


def test_equal_values_are_no_new_best():
    assert best_step({"0": {"gold": 1.0}, "2": {"gold": 1.0}}, "gold") == 0


def test_a_start_that_was_best_comes_back(tmp_path):
    policy, looks = start_policy(), {"0": {"gold": 1.0}}
    best = BestWeights(policy, "gold", tmp_path)
    for step in (2, 4):
        see(best, policy, looks, step, 0.9)
    assert best.restore(looks, start_policy().model) == 0
    assert same_weights(weights_of(policy), weights_of(start_policy()))


def test_lost_weights_are_named(tmp_path):
    looks = {"0": {"gold": 1.0}, "2": {"gold": 2.0}, "4": {"gold": 1.5}}
    with pytest.raises(StageError, match=r"got step None, wanted the best weights, step 2"):
        BestWeights(start_policy(), "gold", tmp_path).restore(looks, start_policy().model)


def test_a_cut_off_run_that_comes_to_another_best_keeps_that_one(tmp_path):
    """As where sampling is not reproducible: steps 4 and 6 were the best ones once, and are not again."""
    policy = start_policy()
    best = BestWeights(policy, "gold", tmp_path)
    first = {"0": {"gold": 1.0}}
    for step, value in ((2, 2.0), (4, 3.0), (6, 4.0)):
        see(best, policy, first, step, value)
    second = {"0": {"gold": 1.0}}
    weights = see(best, policy, second, 2, 2.5)
    see(best, policy, second, 4, 1.0)
    assert best.restore(second, start_policy().model) == 2 and same_weights(weights_of(policy), weights)


def train(folder, *, journal=None, **changes):
    policy = start_policy()
    sampler = sampler_of(policy)
    section = rl_section(**{"steps": 8, "save_every": 3, "eval_every": 1, "eval_samples": 8} | changes)
    report = train_policy(
        policy,
        PROBLEMS,
        PROBLEMS,
        section=section,
        rollouts=sampler,
        engine=ENGINE,
        seed=5,
        log=journal or Journal(),
        checkpoints=folder,
    )
    return policy, sampler, report


def accuracy(sampler, policy):
    look = look_at_heldout(sampler, policy.tokenizer, PROBLEMS, mode="think", samples=8, generation=GENERATION, seed=5)
    return look["accuracy"]


def rates(lr, warmup=0.0):
    return rl_section().optimizer.model_copy(update={"lr": lr, "warmup": warmup, "grad_clip": 1000.0}).model_dump()


RISES_AND_BREAKS = {"steps": 12, "optimizer": rates(0.03, warmup=1.0)}
SEVERAL_STEPS = {"rft": {"max_per_problem": 1, "epochs": 8.0, "batch_tokens": 64, "sequence_length": 64}}
ONE_BAD_STEP = {"optimizer": rates(0.3)}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), keep="best", **RISES_AND_BREAKS)


def test_keep_best_ends_with_the_best_look_and_says_which(tmp_path, whole_run):
    _, _, plain = train(tmp_path, **RISES_AND_BREAKS)
    policy, sampler, report = whole_run
    kept = report["kept_weights"]
    assert report == plain | {"kept_weights": kept}, "training itself is the same"
    looks = {int(step): look["accuracy"] for step, look in report["heldout"].items()}
    assert kept["step"] == max(looks, key=lambda step: (looks[step], -step)) < 12
    assert kept["step"] > 0
    assert (kept["accuracy"], kept["accuracy_last"]) == (looks[kept["step"]], looks[12])
    assert kept["accuracy"] > kept["accuracy_last"]
    assert accuracy(sampler, policy) == kept["accuracy"], "the sampler has these weights too"


def test_keep_last_keeps_the_last(tmp_path):
    policy, sampler, report = train(tmp_path, steps=3)
    assert accuracy(sampler, policy) == report["heldout"]["3"]["accuracy"] and not (tmp_path / "best").exists()


@pytest.mark.parametrize("stop_after", [6, 9])
def test_interrupted_is_uninterrupted(tmp_path, whole_run, stop_after):
    whole, _, report = whole_run
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", keep="best", journal=Journal(stop_after=stop_after), **RISES_AND_BREAKS)
    assert latest_checkpoint(tmp_path / "cut/best"), "the best weights survive"
    resumed, _, again = train(tmp_path / "cut", keep="best", **RISES_AND_BREAKS)
    assert again == report and same_weights(weights_of(whole), weights_of(resumed))


def test_rejection_sampling_keeps_the_better_of_start_and_end(tmp_path):
    _, _, report = train(tmp_path / "good", method="rft", keep="best", **SEVERAL_STEPS)
    assert report["kept_weights"]["step"] == report["steps"]
    policy, _, broken = train(tmp_path / "broken", method="rft", keep="best", **ONE_BAD_STEP)
    assert broken["kept_weights"]["step"] == 0 and same_weights(weights_of(policy), weights_of(start_policy()))
