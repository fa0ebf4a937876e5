"""What a method is and what it changes, read from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.config import ConfigError
from studies.objectives.axes import changes, describe

ROOT = Path(__file__).resolve().parents[2]

BELOW = {
    "objective": {
        "scale": "group_std",
        "clip": "ppo",
        "clip_low": 0.2,
        "kl": {"place": "in_loss", "estimator": "k3", "coefficient": 0.04},
    }
}


def written(folder: Path, name: str, section: dict, *, first: str = "# A method (arXiv 1).") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"{first}\n# More of it.\n{yaml.safe_dump({'grpo': section}, sort_keys=False)}", encoding="utf-8")
    return path


def of(folder: Path, section: dict) -> list[str]:
    return changes(written(folder, "method", section), written(folder, "below", BELOW))


def test_equal_files_differ_in_nothing(tmp_path: Path) -> None:
    assert of(tmp_path, BELOW) == []


def test_other_choices_and_numbers(tmp_path: Path) -> None:
    objective = BELOW["objective"] | {"scale": "none", "clip_low": 0.1}
    assert of(tmp_path, {"objective": objective}) == ["scale: group_std -> none", "clip_low: 0.2 -> 0.1"]


def test_numbers_of_a_part_that_is_not_there_are_no_change(tmp_path: Path) -> None:
    objective = BELOW["objective"] | {"clip": "none", "clip_low": 0.9}
    assert of(tmp_path, {"objective": objective}) == ["clip: ppo -> none"]
    objective = BELOW["objective"] | {"kl": {"place": "none", "estimator": "k1", "coefficient": 0.0}}
    assert of(tmp_path, {"objective": objective}) == ["kl.place: in_loss -> none"]
    objective = BELOW["objective"] | {"kl": {"place": "in_reward", "estimator": "k1", "coefficient": 0.04}}
    assert of(tmp_path, {"objective": objective}) == ["kl.place: in_loss -> in_reward", "kl.estimator: k3 -> k1"]


def test_what_only_one_of_them_states(tmp_path: Path) -> None:
    """More than the neighbour is an addition; less is the profile's and none of the method's."""
    section = {"sampling": "prioritised", "rewards": {"overlong": {"weight": 0.5}}}
    assert of(tmp_path, section) == ["sampling: prioritised", "rewards.overlong.weight: 0.5"]


def test_the_first_line_says_what_it_is(tmp_path: Path) -> None:
    assert describe(written(tmp_path, "method", BELOW)) == "A method (arXiv 1)."
    with pytest.raises(ConfigError, match=r"method\.yaml: line 1: got 'grpo:', wanted a comment"):
        describe(written(tmp_path, "method", BELOW, first="grpo:"))


def test_dr_grpo_is_grpo_without_two_divisions_and_kl() -> None:
    found = changes(ROOT / "objectives/dr_grpo.yaml", ROOT / "objectives/grpo.yaml")
    assert [line.partition(":")[0] for line in found] == ["scale", "clip_high", "aggregate", "kl.place"]
