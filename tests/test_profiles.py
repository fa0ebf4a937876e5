from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import ConfigError, parse_params
from posttrain.profiles import compose, merge

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = sorted(path.stem for path in (ROOT / "objectives").glob("*.yaml"))


@cache
def overlay_of(objective: str) -> dict[str, Any]:
    overlay: dict[str, Any] = yaml.safe_load((ROOT / f"objectives/{objective}.yaml").read_text(encoding="utf-8"))
    return overlay


TINY = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))


def test_merge_is_deep_and_replaces_lists_and_other_kinds() -> None:
    below = {"a": {"x": 1, "y": [1, 2]}, "base": {"kind": "scratch", "steps": 3}}
    above = {"a": {"y": [3]}, "base": {"kind": "hub", "model": "m"}}
    assert merge(below, above) == {"a": {"x": 1, "y": [3]}, "base": {"kind": "hub", "model": "m"}}
    assert merge(below, {"base": {"steps": 4}})["base"] == {"kind": "scratch", "steps": 4}
    assert below["a"] == {"x": 1, "y": [1, 2]}, "the profile below stays as it was"


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(profile: str) -> None:
    assert yaml.safe_load(compose(profile, None, root=ROOT))["profile"] == profile


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_lies_over_the_default_profile(objective: str) -> None:
    values = yaml.safe_load(compose("tiny", objective, root=ROOT))
    overlay = yaml.safe_load((ROOT / "objectives" / f"{objective}.yaml").read_text(encoding="utf-8"))
    assert values["grpo"] == values["grpo"] | {k: v for k, v in overlay["grpo"].items() if not isinstance(v, dict)}
    if "objective" in overlay["grpo"]:
        assert values["grpo"]["objective"] == overlay["grpo"]["objective"]


@pytest.mark.parametrize("below", OBJECTIVES)
def test_an_objective_means_the_same_over_any_other(below: str) -> None:
    """Nothing of the objective that lay there before is left over."""
    for above in OBJECTIVES:
        over_tiny, over_other = (
            merge(start, overlay_of(above))["grpo"] for start in (TINY, merge(TINY, overlay_of(below)))
        )
        assert over_other["method"] == over_tiny["method"]
        if above != "rft":
            assert over_other["objective"] == over_tiny["objective"], above


def test_objectives_differ_by_what_their_papers_say() -> None:
    grpo, dr_grpo = (overlay_of(name)["grpo"]["objective"] for name in ("grpo", "dr_grpo"))
    assert {axis for axis in grpo if grpo[axis] != dr_grpo[axis]} == {"scale", "aggregate", "kl"}
    assert TINY["grpo"]["objective"] == dr_grpo
    for name in OBJECTIVES:
        assert len((ROOT / f"objectives/{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 18, name


def test_muon_is_refused_where_its_matrices_are_partitioned() -> None:
    with pytest.raises(ConfigError, match=r"base\.optimizer\.kind: got 'muon', wanted 'adamw': engine\.zero_stage 2"):
        parse_params(merge(TINY, {"engine": {"zero_stage": 2}}), "params.yaml")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such file; profiles: .*tiny"):
        compose("tny", None, root=ROOT)
    with pytest.raises(ConfigError, match=r"no such file; objectives: .*grpo"):
        compose("tiny", "gpro", root=ROOT)
