"""The page and its picture: numbers in their places, reasons kept, equal bytes for equal numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.config import ConfigError
from posttrain.evals.inputs import Source
from posttrain.records import DataError
from studies.objectives import page
from studies.objectives.figure import picture

ROOT = Path(__file__).resolve().parents[2]


def report(name: str, accuracy: float, **changes: Any) -> dict[str, Any]:
    """Made-up numbers; the interval is 2 points to each side, that of sft 28 to 32."""

    def side(value: float, entropy: float) -> dict[str, Any]:
        spread = {"value": value, "low": value - 0.02, "high": value + 0.02}
        return {"accuracy": spread, "tokens_correct": 40.25, "tokens_wrong": 61.5, "entropy": entropy}

    return {
        "objective": name,
        "questions": 600,
        "samples": 4,
        "budget": {
            "steps": 40,
            "prompts_per_step": 32,
            "group_size": 8,
            "generation": {"temperature": 1.0, "max_new_tokens": 160},
        },
        "learning_rate": 0.00015,
        "sft": side(0.30, 0.2604),
        "end": side(accuracy, 0.0872) | {"kl": 9.4279},
        "difference": {"value": accuracy - 0.3, "low": accuracy - 0.312, "high": accuracy - 0.288},
        "curve": [{"step": 0, "accuracy": 0.3}, {"step": 40, "accuracy": accuracy}],
        "cost": {"seconds": 71.6, "responses": 10240, "tokens": 512345},
        "machine": {"cores": 2, "torch": "9.9.9"},
    } | changes


def sources(*reports: dict[str, Any]) -> dict[str, Source]:
    return {r["objective"]: Source(f"reports/{r['objective']}.json", r) for r in reports}


@pytest.fixture
def objectives(tmp_path: Path) -> Path:
    for name in ("dapo", "grpo", "rloo"):
        scale = "none" if name == "rloo" else "group_std"
        text = f"# {name.upper()} (arXiv 1).\ngrpo:\n  objective: {{scale: {scale}}}\n"
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_every_number_in_its_column_the_best_first(objectives: Path) -> None:
    arms = sources(report("grpo", 0.5), report("rloo", 0.53), report("dapo", 0.33))
    header, rule, sft, *others = rows(page.build(arms, {}, objectives))
    assert {len(line) for line in (header, rule, sft, *others)} == {11}
    assert sft == ["sft", "-", "30.0 [28.0, 32.0]", "-", "-", "40.2 / 61.5", "0.00", "0.260", "-", "-", "-"]
    assert [row[0] for row in others] == ["rloo", "grpo", "dapo"]
    assert others[1] == [
        *("grpo", "1.5e-04", "50.0 [48.0, 52.0]", "yes", "+20.0 [+18.8, +21.2]", "40.2 / 61.5"),
        *("9.43", "0.087", "10,240", "512", "72"),
    ]
    assert others[2][3] == "no", "33 - 2 is not above 30 + 2"


def test_the_conditions_of_the_numbers(objectives: Path) -> None:
    text = page.build(sources(report("grpo", 0.5)), {}, objectives)
    assert "40 steps of 32 prompts x 8 samples, at most 160 tokens each." in text
    assert "600 held-out questions, 4 samples each" in text
    assert "Measured on 2 cores, torch 9.9.9." in text
    assert "Not run yet: dapo, rloo." in text
    assert "make objectives" in text and page.COMMAND in text


def test_intervals_that_touch_are_not_apart() -> None:
    touching = report("grpo", 0.34)
    touching["end"]["accuracy"]["low"] = touching["sft"]["accuracy"]["high"]
    assert not page.is_above(Source("x", touching))
    touching["end"]["accuracy"]["low"] += 1e-6
    assert page.is_above(Source("x", touching))


def test_who_is_not_above_sft_has_its_reason_and_nobody_else(objectives: Path) -> None:
    arms = sources(report("grpo", 0.5), report("rloo", 0.31), report("dapo", 0.29))
    notes = {"grpo": "An old reason.", "rloo": "Too few steps."}
    text = page.build(arms, notes, objectives)
    assert "**rloo**. Too few steps." in text
    assert f"**dapo**. {page.UNEXPLAINED}" in text
    assert "An old reason." not in text
    assert "None: every interval is above that of sft." in page.build(sources(report("grpo", 0.5)), notes, objectives)


def test_methods_say_what_they_change(objectives: Path) -> None:
    text = page.build({}, {}, objectives)
    assert "* **grpo**: GRPO (arXiv 1).\n* **rloo**: RLOO (arXiv 1).\n  Changes `scale: group_std -> none`." in text
    assert "* **dapo**: DAPO (arXiv 1).\n  Changes nothing." in text
    assert "|" not in text and page.PICTURE.name not in text, "no numbers, no picture"


@pytest.mark.parametrize(
    ("key", "value"), [("questions", 24), ("samples", 8), ("budget", {"steps": 1}), ("sft", {"accuracy": 0.4})]
)
def test_arms_of_another_start_or_budget_share_no_table(key: str, value: Any, objectives: Path) -> None:
    arms = sources(report("grpo", 0.5), report("rloo", 0.5, **{key: value}))
    with pytest.raises(
        DataError, match=rf"reports/rloo\.json: key '{key}': got .*, wanted .* as in reports/grpo\.json"
    ):
        page.build(arms, {}, objectives)


def test_strangers_are_named(objectives: Path) -> None:
    with pytest.raises(DataError, match=r"reports/studies/objectives: got 'gone', wanted one of dapo, grpo, rloo"):
        page.build(sources(report("gone", 0.5)), {}, objectives)
    with pytest.raises(DataError, match=r"notes\.yaml: got 'gone'"):
        page.build({}, {"gone": "Because."}, objectives)


def test_a_missing_number_names_file_and_key(objectives: Path) -> None:
    broken = report("grpo", 0.5)
    del broken["end"]["kl"]
    with pytest.raises(DataError, match=r"reports/grpo\.json: key 'kl'"):
        page.build(sources(broken), {}, objectives)


def test_never_right_has_no_length(objectives: Path) -> None:
    never = report("grpo", 0.5)
    never["end"]["tokens_correct"] = None
    assert rows(page.build(sources(never), {}, objectives))[3][5] == "- / 61.5"


def test_notes_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "notes.yaml"
    path.write_text("remark: ''\nreasons:\n  grpo: |\n    Too few\n    steps.\n", encoding="utf-8")
    assert page.read_notes(path) == ("", {"grpo": "Too few steps."})
    path.write_text("{remark: '', reasons: {grpo: ' '}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"reasons\.grpo: got nothing"):
        page.read_notes(path)
    path.write_text("reason: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no such key"):
        page.read_notes(path)


def test_the_command_writes_page_and_picture_and_keeps_the_notes(
    tmp_path: Path, objectives: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    for path in (project / page.REPORTS, project / page.NOTES.parent, project / page.OBJECTIVES):
        path.mkdir(parents=True)
    for file in objectives.glob("*.yaml"):
        (project / page.OBJECTIVES / file.name).write_bytes(file.read_bytes())
    notes = "{remark: On a busy machine., reasons: {rloo: Too few steps.}}\n"
    (project / page.NOTES).write_text(notes, encoding="utf-8")
    for made in (report("grpo", 0.5), report("rloo", 0.31), report("dapo", 0.31)):
        (project / page.REPORTS / f"{made['objective']}.json").write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.chdir(project)
    assert page.main() == 0
    first = (project / page.PAGE).read_bytes(), (project / page.PICTURE).read_bytes()
    assert b"Too few steps." in first[0] and b"\nOn a busy machine.\n" in first[0] and first[1].startswith(b"<svg")
    assert "no reason in studies/objectives/notes.yaml: dapo\n" in capsys.readouterr().out
    assert page.main() == 0
    assert ((project / page.PAGE).read_bytes(), (project / page.PICTURE).read_bytes()) == first
    assert (project / page.NOTES).read_text() == notes


def test_curves_share_an_axis_whatever_their_steps_are() -> None:
    """By hand: 40 steps of RL beside 125 of fine-tuning; the better one is first."""
    looks = [{"step": 0, "accuracy": 0.3}, {"step": 50, "accuracy": 0.4}, {"step": 125, "accuracy": 0.45}]
    arms = sources(report("rft", 0.45, curve=looks), report("grpo", 0.5))
    assert list(page.curves_of(arms).items()) == [
        ("grpo", [(0.0, 0.3), (1.0, 0.5)]),
        ("rft", [(0.0, 0.3), (0.4, 0.4), (1.0, 0.45)]),
    ]


def test_the_picture_is_well_formed_has_a_panel_for_each_and_equal_bytes() -> None:
    curves = {f"method_{i}": [(0.0, 0.3), (0.5, 0.3 + 0.01 * i), (1.0, 0.5)] for i in range(5)}
    svg = picture(curves, start=0.3)
    assert picture(dict(curves), start=0.3) == svg
    texts = {element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= set(curves)
    assert "prefers-color-scheme" in svg


def test_the_page_in_git_is_that_of_the_reports_in_git() -> None:
    """Run `python -m studies.objectives.page` when this fails."""
    arms = {name: Source(f"{page.REPORTS}/{name}.json", arm.values) for name, arm in read().items()}
    remark, notes = page.read_notes(ROOT / page.NOTES)
    wanted = page.build(arms, notes, ROOT / page.OBJECTIVES, remark=remark)
    assert (ROOT / page.PAGE).read_text(encoding="utf-8") == wanted
    assert (ROOT / page.PICTURE).is_file() == bool(arms)


def test_every_reason_is_known() -> None:
    _, notes = page.read_notes(ROOT / page.NOTES)
    assert [name for name, arm in read().items() if not page.is_above(arm) and name not in notes] == []


def read() -> dict[str, Source]:
    return page.read_arms(ROOT / page.REPORTS)
