"""What sections `prefer` and `reward_model` refuse, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import ConfigError, Params, parse_params
from posttrain.profiles import merge

ROOT = Path(__file__).resolve().parents[1]
TINY = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
FILE = {"judge": {"kind": "file", "path": "mine.jsonl"}, "noise": {"kind": "flip", "rate": 0.0}}


def parse(prefer: dict[str, Any], **sections: Any) -> Params:
    return parse_params(merge(TINY, {"prefer": prefer} | sections), "params.yaml")


@pytest.mark.parametrize(
    "prefer",
    [
        {"judge": "shortest"},
        {"judge": {"kind": "rule"}, "model": "sft"},
        {"judge": {"kind": "reward_model", "path": "models/judge"}},
        {"noise": {"kind": "bradley_terry", "temperature": 0.5}},
        {"noise": {"kind": "annotators", "rates": [0.1, 0.2, 0.25], "labels": "majority"}},
        {"noise": {"kind": "annotators", "rates": [0.1, 0.2], "labels": "each"}},
    ],
)
def test_every_choice_is_a_line(prefer: dict[str, Any]) -> None:
    parse(prefer)


@pytest.mark.parametrize(
    ("prefer", "said"),
    [
        ({"model": "base"}, "prefer.model: got 'base'; wanted: 'sft', 'grpo' or 'fuse'"),
        ({"judge": "human"}, "prefer.judge: got 'human'; wanted: one of 'rule', 'shortest', 'reward_model', 'file'"),
        ({"judge": "file"}, "prefer.judge.file.path: missing"),
        (
            {"judge": {"kind": "reward_model", "path": "models/reward_model/"}},
            "prefer.judge.reward_model: path: got 'models/reward_model/', which is made of these pairs; wanted: a copy",
        ),
        ({"noise": {"kind": "flip", "rate": 0.5}}, "prefer.noise.flip.rate: got 0.5; wanted: less than 0.5"),
        (
            {"noise": {"kind": "bradley_terry", "temperature": 0.0}},
            "prefer.noise.bradley_terry.temperature: got 0.0; wanted: greater than 0",
        ),
        (
            {"noise": {"kind": "annotators", "rates": [0.1, 0.2], "labels": "majority"}},
            "prefer.noise.annotators: rates: got 2 annotators, wanted an odd number: a majority can tie",
        ),
        (
            FILE | {"noise": {"kind": "flip", "rate": 0.05}},
            "prefer: noise: got {kind: flip, rate: 0.05}, wanted {kind: flip, rate: 0.0}: a file's labels are",
        ),
        (FILE, "params.yaml: align.rounds: got 3, wanted 1: with prefer.judge 'file' nobody judges fresh pairs"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(prefer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(prefer)
    assert said in str(refused.value)


def test_a_file_of_pairs_goes_with_one_round() -> None:
    assert parse(FILE, align={"rounds": 1}).prefer.judge.kind == "file"


def test_the_required_margin_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"reward_model.margin_scale: got -1.0; wanted: greater than or equal to 0"):
        parse({}, reward_model={"margin_scale": -1.0})
