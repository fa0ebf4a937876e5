"""What section `grpo` refuses, before anything runs and without torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import ConfigError, parse_params
from posttrain.config_asynchrony import most_stale, steps_ahead
from posttrain.config_rl import Objective
from posttrain.profiles import merge

ROOT = Path(__file__).resolve().parents[1]
TINY = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
VALUE = {
    "kind": "value",
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "lr_scale": 3.0,
    "warmup_steps": 3,
    "reward_model": None,
}
IN_REWARD = {"kind": "in_reward", "estimator": "k1", "coefficient": 0.05, "controller": "fixed", "reset_reference": 0}
DROP = {"kind": "drop_constant", "refills": 3}
PROCESS = {"kind": "process", "steps": "checker", "outcome": 0.0}
SQUARED = {"kind": "squared_log_ratio", "tau": 0.1, "reset_optimizer": False}
PLAIN = {"ratio": "none", "clip": "none"}


def parse(objective: dict[str, Any], **changes: Any) -> Objective:
    """The default profile with some axes, and some other keys of grpo, changed."""
    values = merge(TINY, {"grpo": changes})
    values["grpo"]["objective"] = values["grpo"]["objective"] | copy.deepcopy(objective)
    return parse_params(values, "params.yaml").grpo.objective


def test_a_word_is_short_for_a_kind_without_numbers() -> None:
    assert parse({"clip": "none", "ratio": "none"}) == parse({"clip": {"kind": "none"}, "ratio": "none"})


@pytest.mark.parametrize(
    ("axis", "value", "said"),
    [
        ("baseline", "median", "baseline: got 'median'; wanted: one of 'none', 'group_mean', 'leave_one_out'"),
        ("scale", "mad", "scale: got 'mad'; wanted: 'none', 'group_std', 'batch_std' or 'whiten'"),
        ("credit", "token", "credit: got 'token'; wanted: one of 'outcome', 'process'"),
        ("credit", PROCESS | {"steps": "none"}, "credit.process.steps: got 'none'; wanted: one of 'checker', 'prm'"),
        ("credit", PROCESS | {"steps": "prm"}, "credit.process.steps.prm.path: missing"),
        ("ratio", "word", "ratio: got 'word'; wanted: 'token', 'sequence' or 'none'"),
        ("clip", {"kind": "hard"}, "clip: got 'hard'; wanted: one of 'none', 'ppo', 'dual', 'cispo'"),
        ("surrogate", "best", "surrogate: got 'best'; wanted: one of 'clipped', 'reinforce', 'positives_only'"),
        ("aggregate", "sum", "aggregate: got 'sum'; wanted: 'sequence_mean', 'token_mean'"),
        ("kl", "everywhere", "kl: got 'everywhere'; wanted: one of 'none', 'in_reward', 'in_loss'"),
        ("correction", "tis", "correction: got 'tis'; wanted: one of 'none', 'truncated', 'masked', 'sequence_mask'"),
        ("groups", "some", "groups: got 'some'; wanted: one of 'keep_all', 'drop_constant'"),
        ("truncated", "drop", "truncated: got 'drop'; wanted: one of 'keep', 'mask', 'penalty', 'replace'"),
        ("clip", "ppo", "clip.ppo.low: missing"),
        ("clip", {"kind": "none", "low": 0.2}, "clip.none.low: got 0.2; wanted: no such key"),
        ("kl", IN_REWARD | {"coefficient": 0.0}, "kl.in_reward.coefficient: got 0.0; wanted: greater than 0"),
    ],
)
def test_unknown_choices_list_the_known_ones(axis: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse({axis: value})
    assert f"params.yaml: grpo.objective.{said}" in str(refused.value)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"ratio": "sequence"}, "aggregate: got 'constant', wanted 'sequence_mean'"),
        (
            {"surrogate": SQUARED, **PLAIN, "aggregate": "token_mean"},
            "aggregate: got 'token_mean', wanted 'sequence_sum'",
        ),
        ({"surrogate": "reinforce"}, "ratio: got 'token', wanted 'none': surrogate 'reinforce' looks at no ratio"),
        ({"surrogate": "positives_only", "ratio": "none"}, "clip: got 'ppo', wanted 'none'"),
        ({"ratio": "none"}, "clip: got 'ppo', wanted 'none'"),
        ({"baseline": VALUE, "scale": "group_std"}, "scale: got 'group_std', wanted 'none' or 'whiten'"),
        ({"baseline": "none", "scale": "whiten"}, "scale: got 'whiten', wanted another, or baseline 'batch_mean'"),
        ({"credit": PROCESS, "scale": "whiten"}, "scale: got 'whiten', wanted 'none' or 'group_std'"),
        ({"credit": PROCESS, "baseline": VALUE}, "baseline: got 'value', wanted 'group_mean'"),
        (
            {"credit": PROCESS, "ratio": "sequence", "aggregate": "sequence_mean"},
            "ratio: got 'sequence', wanted 'token': a ratio per sequence cannot tell",
        ),
        (
            {"baseline": VALUE, "surrogate": SQUARED, **PLAIN, "aggregate": "sequence_sum"},
            "surrogate: got 'squared_log_ratio', wanted another",
        ),
        ({"kl": IN_REWARD | {"estimator": "k3"}}, "kl.estimator: got 'k3', wanted 'k1'"),
        ({"kl": IN_REWARD | {"kind": "in_loss"}}, "kl.estimator: got 'k1', wanted 'k2', 'k3' or 'k3_corrected'"),
        ({"groups": DROP, "baseline": VALUE}, "groups: got 'drop_constant', wanted 'keep_all': with baseline 'value'"),
        ({"groups": DROP, "kl": IN_REWARD}, "groups: got 'drop_constant', wanted 'keep_all': with the KL"),
        (
            {"kl": IN_REWARD | {"controller": {"kind": "adaptive", "target": 6.0, "horizon": 100}}},
            "kl.controller.horizon: got 100, wanted at least the 256 samples",
        ),
        ({"baseline": VALUE | {"warmup_steps": 999}}, "baseline.warmup_steps: got 999, wanted fewer than steps = "),
    ],
)
def test_choices_that_contradict_each_other_are_refused_with_the_reason(objective: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(objective)
    assert str(refused.value).startswith("params.yaml: grpo: objective.")
    assert said in str(refused.value)


def test_learning_from_positive_rewards_alone_needs_wrong_answers_at_zero() -> None:
    only = {"baseline": "none", "surrogate": "positives_only", **PLAIN}
    with pytest.raises(
        ConfigError, match=r"grpo: rewards: got weights for format, language_consistency with .* wanted 0"
    ):
        parse(only)
    nothing = {"weight": 0.0, "start": 0, "ramp": 0}
    parse(only, rewards={"format": nothing, "language_consistency": nothing})
    parse(only | {"baseline": "group_mean"})  # then a wrong answer among right ones is below it


@pytest.mark.parametrize(
    "objective", [{}, {"baseline": "leave_one_out"}, {"baseline": "none", "scale": "group_std"}, {"credit": PROCESS}]
)
def test_a_group_of_one_has_no_statistics(objective: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="group_size: got 1, wanted at least 2"):
        parse(objective, group_size=1)


@pytest.mark.parametrize("objective", [{"baseline": "none"}, {"baseline": "batch_mean"}, {"baseline": VALUE}])
def test_a_group_of_one_is_enough_where_groups_do_not_matter(objective: dict[str, Any]) -> None:
    parse(objective, group_size=1)


def test_validation_does_not_import_torch() -> None:
    code = "import sys; from posttrain.profiles import compose; compose('tiny', 'ppo'); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


SEGMENTS = {"kind": "budget", "tokens": 40, "batches": 2, "train": "all"}


@pytest.mark.parametrize(
    ("asynchrony", "said"),
    [
        ("two_steps_off", "asynchrony: got 'two_steps_off'; wanted: one of 'sync', 'one_step_off', 'async'"),
        ("async", "asynchrony.async.max_staleness: missing"),
        ({"kind": "async", "max_staleness": -1, "partial": "none"}, "max_staleness: got -1; wanted: greater than"),
        ({"kind": "async", "max_staleness": 3, "partial": SEGMENTS}, "max_staleness: got 3, wanted at least 4"),
        (
            {"kind": "async", "max_staleness": 4, "partial": SEGMENTS | {"batches": 5}},
            "partial.batches: got 5, wanted at most max_staleness = 4",
        ),
        ({"kind": "async", "max_staleness": 4, "partial": SEGMENTS | {"train": "new"}}, "wanted: 'all' or 'fresh'"),
    ],
)
def test_a_lead_under_which_nothing_could_be_trained_is_refused(asynchrony: Any, said: str) -> None:
    """The default profile's longest response has 160 tokens: 4 segments of 40."""
    with pytest.raises(ConfigError) as refused:
        parse({}, asynchrony=asynchrony)
    assert said in str(refused.value)


@pytest.mark.parametrize("asynchrony", ["one_step_off", {"kind": "async", "max_staleness": 0, "partial": "none"}])
def test_refills_cannot_be_sampled_ahead(asynchrony: Any) -> None:
    with pytest.raises(ConfigError, match=r"asynchrony: got '.*', wanted 'sync' with objective.groups 'drop_constant'"):
        parse({"groups": DROP}, asynchrony=asynchrony)


def test_how_far_ahead_each_mode_is() -> None:
    def leads(asynchrony: Any) -> tuple[int, int]:
        chosen = parse_params(merge(TINY, {"grpo": {"asynchrony": asynchrony}}), "params.yaml").grpo.asynchrony
        return steps_ahead(chosen), most_stale(chosen)

    assert leads("sync") == (0, 0) and leads("one_step_off") == (1, 1)
    assert leads({"kind": "async", "max_staleness": 3, "partial": "none"}) == (3, 3)
    assert leads({"kind": "async", "max_staleness": 4, "partial": SEGMENTS}) == (1, 4)
