from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.config import ConfigError
from posttrain.profiles import compose, merge

ROOT = Path(__file__).resolve().parents[1]


def test_merge_is_deep_and_replaces_lists_and_other_kinds() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "base": {"kind": "scratch", "steps": 3}}
    above = {"a": {"y": [3]}, "base": {"kind": "hub", "model": "m"}}
    assert merge(below, above) == {"a": {"x": 1, "y": [3]}, "base": {"kind": "hub", "model": "m"}}
    assert merge(below, {"base": {"steps": 4}})["base"] == {"kind": "scratch", "steps": 4}
    assert below["a"] == {"x": 1, "y": [1, 2]}, "the profile below stays as it was"


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(profile: str) -> None:
    assert yaml.safe_load(compose(profile, None, root=ROOT))["profile"] == profile


@pytest.mark.parametrize("objective", sorted(path.stem for path in (ROOT / "objectives").glob("*.yaml")))
def test_every_objective_lies_over_the_default_profile(objective: str) -> None:
    values = yaml.safe_load(compose("tiny", objective, root=ROOT))
    overlay = yaml.safe_load((ROOT / "objectives" / f"{objective}.yaml").read_text(encoding="utf-8"))
    assert values["grpo"]["objective"] == overlay["grpo"]["objective"]


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such file; profiles: .*tiny"):
        compose("tny", None, root=ROOT)
    with pytest.raises(ConfigError, match=r"no such file; objectives: .*grpo"):
        compose("tiny", "gpro", root=ROOT)
