"""What section `align` refuses, before anything runs: numbers of another method, and choices that contradict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import ConfigError, parse_params
from posttrain.config_align import Align, Orpo
from posttrain.config_align_rl import LearnedRl
from posttrain.profiles import merge

TINY = yaml.safe_load((Path(__file__).resolve().parents[1] / "profiles/tiny.yaml").read_text(encoding="utf-8"))
KTO = {"kind": "kto", "beta": 0.1, "sft_weight": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}


def parse(**changes: Any) -> Align:
    """The default profile with an overlay on section align."""
    return parse_params(merge(TINY, {"align": changes}), "params.yaml").align


def test_another_method_replaces_all_numbers_of_the_default_one() -> None:
    section = parse(method={"kind": "orpo", "beta": 0.1})
    assert isinstance(section.method, Orpo) and section.method.sft_weight == 0.0
    assert section.optimizer == parse().optimizer


def test_the_same_method_keeps_what_the_overlay_does_not_name() -> None:
    assert parse(method={"beta": 0.5}).method.model_dump() == TINY["align"]["method"] | {"beta": 0.5}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"kind": "dpo2"}, "method: got 'dpo2'; wanted: one of 'dpo', 'dpo_norm', 'ipo', 'ipo_norm', 'cdpo'"),
        ("simpo", "method.simpo.gamma: missing"),
        ({"gamma": 1.0}, "method.dpo.gamma: got 1.0; wanted: no such key"),
        ({"flip_rate": 0.1}, "method.dpo.flip_rate: got 0.1; wanted: no such key"),
        ({"kind": "simpo", "beta": 2.0, "sft_weight": 0.0}, "method.simpo.gamma: missing"),
        ({"kind": "orpo", "beta": 0.1, "sft_weight": 1.0}, "method.orpo.sft_weight: got 1.0; wanted: no such key"),
        (
            {"kind": "cdpo", "beta": 0.1, "sft_weight": 0.0, "flip_rate": 0.0},
            "method.cdpo.flip_rate: got 0.0; wanted: greater than 0",
        ),
        (
            {"kind": "robust_dpo", "beta": 0.1, "sft_weight": 0.0, "flip_rate": 0.5},
            "method.robust_dpo.flip_rate: got 0.5; wanted: less than 0.5",
        ),
        ({"beta": 0.0}, "method.dpo.beta: got 0.0; wanted: greater than 0"),
        (KTO | {"undesirable_weight": 0.0}, "method.kto.undesirable_weight: got 0.0; wanted: greater than 0"),
    ],
)
def test_numbers_of_another_method_and_out_of_range_are_named(method: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(method=method)
    assert f"params.yaml: align.{said}" in str(refused.value)


def test_kto_wants_a_batch_to_take_a_mean_over() -> None:
    with pytest.raises(ConfigError, match="align: batch_pairs: got 1, wanted at least 2 with method 'kto'"):
        parse(method=KTO, batch_pairs=1)
    assert parse(method=KTO, batch_pairs=2).batch_pairs == parse(batch_pairs=1).batch_pairs + 1


LEARNED_RL = {
    "kind": "grpo_rm", "objective": TINY["grpo"]["objective"], "steps": 3, "epochs": 1, "minibatches": 1,
    "rewards": {"learned": {"weight": 1.0, "start": 0, "ramp": 0}}, "look_every": 1, "look_problems": 2,
    "look_samples": 2, "stop": {"signal": "gold", "checks": 2}, "second_reward_model": None,
}  # fmt: skip


def test_rl_on_a_reward_model_is_a_method_without_rounds() -> None:
    section = parse(method=LEARNED_RL, rounds=1)
    assert isinstance(section.method, LearnedRl) and section.method.stop.signal == "gold"
    with pytest.raises(ConfigError, match="align: rounds: got 2, wanted 1 with method 'grpo_rm'"):
        parse(method=LEARNED_RL, rounds=2)
    with pytest.raises(ConfigError, match=r"method.grpo_rm.beta: got 0.1; wanted: no such key"):
        parse(method=LEARNED_RL | {"beta": 0.1}, rounds=1)
