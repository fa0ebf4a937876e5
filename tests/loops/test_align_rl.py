import dataclasses
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from posttrain import config
from posttrain.config_align_rl import LEARNED, LearnedRl
from posttrain.loops.align_rl import Watch, in_one_sentence, means, run_align_rl
from posttrain.loops.align_rl import rl_section as section_of
from posttrain.loops.best import BestWeights
from posttrain.loops.gold import look_at_scores
from posttrain.loops.reward_model import run_reward_model
from posttrain.rewards import total
from tests.loops.test_preference import pairs
from tests.loops.toy import (
    ENGINE,
    GENERATION,
    PROBLEMS,
    Journal,
    objective,
    optimizer,
    rl_section,
    same_weights,
    sampler_of,
    start_policy,
    weights_of,
)

DOCS = Path(__file__).parents[2] / "docs/overoptimization.md"
OBJECTIVES = {"ppo": "ppo", "grpo_rm": "dr_grpo"}


def section(kind="grpo_rm", *, signal="gold", checks=2, **changes):
    values = {
        "kind": kind,
        "objective": objective(OBJECTIVES[kind])["objective"],
        "steps": 8,
        "epochs": 1,
        "minibatches": 1,
        "rewards": {"learned": {"weight": 1.0, "start": 0, "ramp": 0}},
        "look_every": 2,
        "look_problems": 4,
        "look_samples": 8,
        "stop": {"signal": signal, "checks": checks},
        "second_reward_model": "models/other",
    }
    return config.parse_section(LearnedRl, values | changes, "align.method")


def reward_model(folder, pairs):
    model, _ = run_reward_model(
        start_policy(),
        pairs,
        section=config.RewardModel(
            optimizer=optimizer(0.003), epochs=8.0, batch_pairs=4, centering=0.01, margin_scale=0.0
        ),
        engine=ENGINE,
        seed=3,
        log=Journal(),
        checkpoints=folder,
        save_every=100,
    )
    return model.requires_grad_(False).eval()


def swapped(pair):
    return dataclasses.replace(
        pair, chosen=pair.rejected, rejected=pair.chosen, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One that likes right answers, and one that likes wrong ones."""
    folder = tmp_path_factory.mktemp("reward_models")
    return {
        "right": reward_model(folder / "right", pairs()),
        "wrong": reward_model(folder / "wrong", [swapped(pair) for pair in pairs()]),
    }


def align(folder, numbers, model, second=None, *, journal=None, lr=0.003):
    policy = start_policy()
    journal = journal or Journal()
    sampler = sampler_of(policy)
    summary = run_align_rl(
        policy,
        PROBLEMS,
        PROBLEMS,
        section=numbers,
        optimizer=optimizer(lr),
        grpo=rl_section(save_every=3),
        reward_model=model,
        second=second,
        rollouts=sampler,
        engine=ENGINE,
        seed=5,
        log=journal,
        checkpoints=folder,
    )
    return policy, summary, journal


def test_overoptimization_is_seen_and_stopped(tmp_path, models):
    """A proxy of one epoch's pairs, and no leash: gold rises, then falls, while the proxy goes on rising."""
    numbers = section(steps=40, checks=3)
    policy, summary, journal = align(tmp_path, numbers, models["right"], lr=0.001)
    looks, kept, last = summary["heldout"], str(summary["kept_step"]), str(summary["steps"])
    assert set(looks["0"]) == {"gold", "gold_error", "proxy", "proxy_error", "accuracy", "tokens", "kl"}
    assert looks["0"]["kl"] == 0.0
    assert 0 < int(kept) < int(last) < 40 and len([step for step in looks if int(step) > int(kept)]) == 3
    assert looks[kept]["gold"] > max(looks["0"]["gold"], looks[last]["gold"]) + 0.1
    assert looks[last]["proxy"] > looks[kept]["proxy"] > looks["0"]["proxy"]
    assert looks[last]["kl"] > looks[kept]["kl"] > 0
    # The weights are those of the look, and the sampler has them.
    again = look_at_scores(
        sampler_of(policy), policy, start_policy().model, PROBLEMS, {}, samples=8, generation=GENERATION, seed=5,
        micro_batch_tokens=4096,
    )  # fmt: skip
    assert again["gold"].mean() == pytest.approx(looks[kept]["gold"])
    assert again["kl"].mean() == pytest.approx(looks[kept]["kl"], rel=1e-3)
    assert journal.rows[-1][1]["eval/gold"] == looks[last]["gold"]
    assert journal.rows[-1][1]["reward/learned_weight"] == 1.0


@pytest.mark.parametrize("signal", ["gold", "second_proxy"])
def test_a_bad_proxy_is_left_once_the_signal_turned_down(tmp_path, models, signal):
    numbers = section(signal=signal, steps=30, checks=2, look_samples=16)
    policy, summary, journal = align(tmp_path, numbers, models["wrong"], models["right"])
    looks = summary["heldout"]
    assert summary["steps"] < 30 and summary["steps"] == int(list(looks)[-1]) == journal.rows[-1][0]
    later = [step for step in looks if int(step) > summary["kept_step"]]
    assert len(later) == 2 and all(looks[step][signal] < looks[str(summary["kept_step"])][signal] for step in later)
    assert summary["sentence"].startswith(f"{signal} peaked after step {summary['kept_step']} at KL ")
    if summary["kept_step"] == 0:
        assert same_weights(weights_of(policy), weights_of(start_policy()))


def test_without_a_signal_all_steps_are_made(tmp_path, models):
    _, summary, _ = align(tmp_path, section(signal="none", steps=6, checks=1), models["wrong"])
    assert (summary["steps"], summary["kept_step"]) == (6, 6)
    assert not (tmp_path / "best").exists()


def test_interrupted_is_uninterrupted(tmp_path, models):
    numbers = section(signal="gold", steps=8, checks=3)
    whole, summary, _ = align(tmp_path / "whole", numbers, models["wrong"])
    with pytest.raises(KeyboardInterrupt):
        align(tmp_path / "cut", numbers, models["wrong"], journal=Journal(stop_after=6))
    resumed, again, _ = align(tmp_path / "cut", numbers, models["wrong"])
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert (summary["kept_step"], summary["sentence"]) == (again["kept_step"], again["sentence"])


def test_ppo_trains_policy_and_value_network_on_the_score(tmp_path, models):
    numbers = section("ppo", steps=5, epochs=2, signal="none")
    policy, _, journal = align(tmp_path, numbers, models["right"])
    metrics = journal.rows[-1][1]
    assert {"train/value_loss", "kl/coefficient", "reward/learned", "eval/proxy"} <= set(metrics)
    assert "reward/accuracy" not in metrics
    assert not same_weights(weights_of(policy), weights_of(start_policy()))


def test_a_turn_is_so_many_looks_in_a_row_below_the_best(tmp_path):
    watch = Watch(BestWeights(start_policy(), "gold", tmp_path), 2)
    assert watch({"0": {"gold": 1.0}, "2": {"gold": 2.0}, "4": {"gold": 1.5}}) is False
    assert watch({"0": {"gold": 1.0}, "2": {"gold": 2.0}, "4": {"gold": 1.5}, "6": {"gold": 1.9}}) is True
    # A dip that is over is no turn.
    assert watch({"0": {"gold": 1.0}, "2": {"gold": 0.5}, "4": {"gold": 2.0}}) is False


def test_scores_come_with_the_standard_error_of_their_mean():
    """Of 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, sqrt(14 / 3) / sqrt(4)."""
    found = means({"gold": np.array([1.0, 2.0, 3.0, 6.0]), "kl": np.array([0.0, 1.0, 2.0, 3.0])})
    assert found == pytest.approx({"gold": 3.0, "gold_error": (14 / 3) ** 0.5 / 2, "kl": 1.5})


def test_the_sentence():
    looks = {"0": {"gold": 1.0, "kl": 0.0}, "2": {"gold": 2.0, "kl": 4.0}, "4": {"gold": 1.5, "kl": 9.0}}
    assert in_one_sentence(looks, signal="gold", kept=2) == (
        "gold peaked after step 2 at KL 4.00 nats (sqrt 2.00) and was -0.5 from there at step 4, the last: the weights "
        "after step 2 are kept."
    )
    assert in_one_sentence(looks, signal="none", kept=4).endswith("the weights after step 4 are kept.")
    assert "has not turned down" in in_one_sentence({"0": looks["0"], "2": looks["2"]}, signal="gold", kept=2)


def test_the_loops_numbers_are_those_of_grpo_but_for_the_methods_own():
    grpo = rl_section(group_size=4, sampling="prioritised")
    numbers = section_of(grpo, section("ppo", epochs=3), optimizer(0.01))
    assert numbers.group_size == 4 and numbers.generation == grpo.generation
    assert (numbers.epochs, numbers.sampling, numbers.optimizer.lr) == (3, "uniform", 0.01)
    assert numbers.objective.baseline.kind == "value" and set(numbers.rewards) == {"learned"}
    with pytest.raises(config.ConfigError, match=r"align.method 'grpo_rm'.*group_size: got 1"):
        section_of(rl_section("reinforce", group_size=1), section(), optimizer())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "ppo"}, r"objective.baseline: got 'group_mean' with kind 'ppo', wanted 'value'"),
        ({"rewards": {"accuracy": {"weight": 1.0, "start": 0, "ramp": 0}}}, r"got \['accuracy'\], wanted 'learned'"),
        (
            {"stop": {"signal": "second_proxy", "checks": 2}, "second_reward_model": None},
            r"second_reward_model: got null, wanted a folder",
        ),
        ({"objective": objective("dr_grpo")["objective"] | {"ratio": "none"}}, r"objective.clip: got 'ppo', wanted"),
        ({"stop": {"signal": "gold", "checks": 0}}, r"stop.checks: got 0; wanted: greater than or equal to 1"),
        ({"sampling": "uniform"}, r"sampling: got 'uniform'; wanted: no such key"),
    ],
)
def test_wrong_numbers_are_named(changes, said):
    values = section().model_dump(mode="json")
    with pytest.raises(config.ConfigError, match=said):
        config.parse_section(LearnedRl, values | changes, "align.method")


def test_a_value_network_that_never_lets_go_is_refused():
    with pytest.raises(config.ConfigError, match=r"warmup_steps: got 3, wanted fewer than steps = 3"):
        section("ppo", steps=3)


def test_the_pages_example_is_valid():
    _, found, rest = DOCS.read_text(encoding="utf-8").partition("    align:\n")
    block = found + rest.partition("\n\n")[0]
    values = yaml.safe_load(textwrap.dedent(block))["align"]["method"]
    assert config.parse_section(LearnedRl, values, "docs").stop.signal == "gold"


def test_one_name_for_the_term():
    assert LEARNED == total.LEARNED
