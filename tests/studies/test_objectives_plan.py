"""The study's numbers: strict, the same budget for every arm, and an arm for every objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.config import ConfigError, Params, load_params
from posttrain.loops.recipe import choose_recipe
from studies.objectives.plan import STUDY, Study, arm_section, load_study

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = sorted(path.stem for path in (ROOT / "objectives").glob("*.yaml"))


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(ROOT / STUDY)


def written(folder: Path, values: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_every_objective_has_an_arm_and_every_arm_an_objective(study: Study) -> None:
    assert sorted(study.arms) == OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_arm_can_be_trained(name: str, params: Params, study: Study) -> None:
    section = arm_section(name, params, study, root=ROOT)
    choose_recipe(section.objective, group_size=section.group_size)
    assert section.steps == study.grpo["steps"]
    assert section.optimizer.lr == study.arms[name].lr
    assert section.optimizer.schedule == params.grpo.optimizer.schedule


def test_every_arm_may_sample_equally_much(params: Params, study: Study) -> None:
    """However often it trains on that: some methods are several passes or updates per batch."""
    sections = {name: arm_section(name, params, study, root=ROOT) for name in OBJECTIVES}
    generation = params.grpo.generation
    for section in sections.values():
        budget = (section.steps, section.prompts_per_step, section.group_size, section.generation)
        assert budget == (study.grpo["steps"], params.grpo.prompts_per_step, params.grpo.group_size, generation)
    updates = {name: section.epochs * section.minibatches for name, section in sections.items()}
    own = {"kimi_k15": 4, "ppo": 4 * 2, "tulu_rlvr": 4 * 2}
    assert updates == dict.fromkeys(OBJECTIVES, 2) | own


def test_what_an_objective_states_lies_over_what_the_study_states(params: Params, study: Study, tmp_path: Path) -> None:
    overlay = {"grpo": {"objective": {"scale": "batch_std"}, "rewards": {"length": {"weight": 0.5}}, "epochs": 3}}
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives/grpo.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    changed = study.model_copy(update={"grpo": {"steps": 7, "epochs": 2, "rewards": {"length": {"start": 5}}}})
    section = arm_section("grpo", params, changed, root=tmp_path)
    assert (section.steps, section.epochs, section.objective.scale) == (7, 3, "batch_std")
    assert (section.rewards["length"].weight, section.rewards["length"].start) == (0.5, 5)
    assert section.rewards["accuracy"] == params.grpo.rewards["accuracy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 99), ("group_size", 99), ("prompts_per_step", 99), ("generation", {"max_new_tokens": 99})],
)
def test_an_objective_with_a_budget_of_its_own_is_refused(
    key: str, value: object, params: Params, study: Study, tmp_path: Path
) -> None:
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives/grpo.yaml").write_text(yaml.safe_dump({"grpo": {key: value}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"objectives/grpo\.yaml: grpo\.{key}: got .*99.*same budget"):
        arm_section("grpo", params, study, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, r"step: got 3; wanted: no such key"),
        ({"watched": 0}, r"watched: got 0; wanted: greater than or equal to 1"),
        ({"watched": "many"}, r"watched: got 'many'; wanted: a valid integer"),
        ({"arms": {"grpo": {}}}, r"arms\.grpo\.lr: missing"),
        ({"arms": {"grpo": {"lr": 0.0}}}, r"arms\.grpo\.lr: got 0\.0; wanted: greater than 0"),
        ({"arms": {"grpo": {"lr": 0.1, "steps": 3}}}, r"arms\.grpo\.steps: got 3; wanted: no such key"),
    ],
)
def test_wrong_fields_are_named(change: dict, message: str, tmp_path: Path) -> None:
    right = {"grpo": {"steps": 3}, "watched": 10, "arms": {"grpo": {"lr": 0.1}}}
    assert load_study(written(tmp_path, right)).watched == 10
    with pytest.raises(ConfigError, match=message):
        load_study(written(tmp_path, right | change))


def test_a_missing_field_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml: arms: missing"):
        load_study(written(tmp_path, {"grpo": {}, "watched": 10}))
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_study(tmp_path / "none.yaml")


def test_a_wrong_key_of_grpo_is_named_with_its_files(params: Params, study: Study) -> None:
    changed = study.model_copy(update={"grpo": {"stepz": 7}})
    with pytest.raises(ConfigError, match=r"studies/objectives/params\.yaml .*: grpo\.stepz: got 7; wanted: no such"):
        arm_section("grpo", params, changed, root=ROOT)
    with pytest.raises(ConfigError, match=r"arms: got no 'gpro', wanted one of .*grpo"):
        arm_section("gpro", params, study, root=ROOT)
