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
        "clip": {"kind": "ppo", "low": 0.2},
        "kl": {"kind": "in_loss", "estimator": "k3", "controller": "fixed"},
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
    objective = BELOW["objective"] | {"scale": "none", "clip": {"kind": "ppo", "low": 0.1}}
    assert of(tmp_path, {"objective": objective}) == ["scale: group_std -> none", "clip.low: 0.2 -> 0.1"]


def test_a_choice_without_numbers_is_one_change(tmp_path: Path) -> None:
    """Whichever way it is written."""
    for none in ("none", {"kind": "none"}):
        objective = BELOW["objective"] | {"clip": none, "kl": none}
        assert of(tmp_path, {"objective": objective}) == ["clip: ppo -> none", "kl: in_loss -> none"]


def test_another_choice_comes_with_its_numbers(tmp_path: Path) -> None:
    objective = BELOW["objective"] | {"clip": {"kind": "cispo", "high": 4.0}}
    assert of(tmp_path, {"objective": objective}) == ["clip: ppo -> cispo", "clip.high: 4.0"]
    controller = {"kind": "adaptive", "target": 6.0}
    objective = BELOW["objective"] | {"kl": {"kind": "in_reward", "estimator": "k1", "controller": controller}}
    assert of(tmp_path, {"objective": objective}) == [
        *("kl: in_loss -> in_reward", "kl.estimator: k3 -> k1"),
        *("kl.controller: fixed -> adaptive", "kl.controller.target: 6.0"),
    ]


def test_what_only_one_of_them_states(tmp_path: Path) -> None:
    """More than the neighbour is an addition; less is the profile's and none of the method's."""
    section = {"sampling": "prioritised", "rewards": {"overlong": {"weight": 0.5}}}
    assert of(tmp_path, section) == ["sampling: prioritised", "rewards.overlong.weight: 0.5"]


def test_the_first_line_says_what_it_is(tmp_path: Path) -> None:
    assert describe(written(tmp_path, "method", BELOW)) == "A method (arXiv 1)."
    with pytest.raises(ConfigError, match=r"method\.yaml: line 1: got 'grpo:', wanted a comment"):
        describe(written(tmp_path, "method", BELOW, first="grpo:"))


def test_dr_grpo_is_grpo_without_two_divisions_and_kl() -> None:
    assert changes(ROOT / "objectives/dr_grpo.yaml", ROOT / "objectives/grpo.yaml") == [
        "scale: group_std -> none",
        "aggregate: sequence_mean -> constant",
        "kl: in_loss -> none",
    ]


def test_step_rewards_change_one_axis_and_rft_the_method() -> None:
    neighbour = ROOT / "objectives/grpo.yaml"
    assert changes(ROOT / "objectives/process_grpo.yaml", neighbour) == [
        *("credit: outcome -> process", "credit.steps: checker", "credit.outcome: 0.0"),
    ]
    assert changes(ROOT / "objectives/rft.yaml", neighbour) == ["method: rl -> rft"]
