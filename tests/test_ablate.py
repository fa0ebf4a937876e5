from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.ablate import grid, override
from posttrain.config import ConfigError

TINY = (Path(__file__).resolve().parents[1] / "profiles" / "tiny.yaml").read_text(encoding="utf-8")


def test_every_combination_once() -> None:
    assert grid(["a.b=1,2.5", "c=x,true"]) == [
        {"a.b": 1, "c": "x"},
        {"a.b": 1, "c": True},
        {"a.b": 2.5, "c": "x"},
        {"a.b": 2.5, "c": True},
    ]
    with pytest.raises(ConfigError, match="wanted name=value"):
        grid(["seed"])


def test_an_override_changes_one_key_and_is_checked() -> None:
    changed = yaml.safe_load(override(TINY, {"grpo.optimizer.lr": 0.5}))
    expected = yaml.safe_load(TINY)
    expected["grpo"]["optimizer"]["lr"] = 0.5
    assert changed == expected
    with pytest.raises(ConfigError, match=r"--set grpo\.lr: no such key"):
        override(TINY, {"grpo.lr": 0.5})
    with pytest.raises(ConfigError, match=r"seed: got -1; wanted: greater than or equal to 0"):
        override(TINY, {"seed": -1})
