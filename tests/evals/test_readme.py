"""The README's numbers are those of the reports, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.evals import readme
from posttrain.evals.chain_figure import chain_svg
from posttrain.records import DataError

ROOT = Path(__file__).parents[2]


def report(model: str, **changes: Any) -> dict[str, Any]:
    def mode(accuracy: float) -> dict[str, Any]:
        return {
            "avg": {"value": accuracy, "low": accuracy - 0.025, "high": accuracy + 0.025},
            "tokens_mean": 61.25,
            "tokens_mean_correct": 52.04,
            "language_mixing": 0.031,
            "ece": 0.0625,
        }

    values = {
        "model": model,
        "parameters": 912345,
        "questions": 600,
        "samples": 8,
        "think": mode(0.75),
        "no_think": mode(0.25),
        "mode_following": 0.999,
    }
    return values | changes


ROW = "| 912,345 | 75.0 [72.5, 77.5] | 25.0 [22.5, 27.5] | 52.0 / 61.2 | 3.1 | 99.9 | 0.062 |"


def test_table_has_every_number_in_its_column() -> None:
    header, rule, row = readme.results_table({"sft": report("sft")}).splitlines()
    assert [len(line.split("|")) for line in (header, rule, row)] == [10, 10, 10]
    assert row == f"| sft {ROW}"


def test_rows_follow_the_chain_whatever_the_order_of_the_mapping() -> None:
    names = ("mine", "distill", "base", "grpo")
    rows = readme.results_table({name: report(name) for name in names}).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["base", "grpo", "distill", "mine"]


def test_what_a_model_has_not_is_a_dash() -> None:
    base = report("base", mode_following=None)
    base["think"]["tokens_mean_correct"] = None
    assert "| - / 61.2 | 3.1 | - | 0.062 |" in readme.results_table({"base": base})


def test_missing_key_names_file_and_key() -> None:
    broken = report("fuse")
    del broken["no_think"]["avg"]
    with pytest.raises(DataError, match=r"reports/evaluate/fuse\.json: key 'no_think\.avg'"):
        readme.results_table({"fuse": broken})


def test_different_question_sets_do_not_share_a_table() -> None:
    with pytest.raises(DataError, match="wanted the same in all"):
        readme.results_block({"sft": report("sft"), "grpo": report("grpo", questions=24)})


def test_block_is_replaced_and_nothing_else() -> None:
    text = f"# a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    assert readme.with_block(text, "new") == f"# a\n{readme.BEGIN}\nnew\n{readme.END}\nb\n"
    assert readme.block_of(readme.with_block(text, "new")) == "new"
    again = readme.with_block(readme.with_block(text, "new"), "new")
    assert again == readme.with_block(text, "new")


@pytest.mark.parametrize(
    "text", ["no markers", readme.BEGIN, readme.END + readme.BEGIN, 2 * (readme.BEGIN + readme.END)]
)
def test_lost_markers_are_an_error(text: str) -> None:
    with pytest.raises(DataError, match="wanted the markers"):
        readme.block_of(text)


def test_command_writes_what_the_reports_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(f"top\n{readme.BEGIN}\n{readme.NOTHING}\n{readme.END}\n", encoding="utf-8")
    assert readme.main() == 0
    assert readme.block_of(Path("README.md").read_text(encoding="utf-8")) == readme.NOTHING
    assert not readme.PICTURE.exists()
    folder = Path("reports/evaluate")
    folder.mkdir(parents=True)
    (folder / "grpo.json").write_text(json.dumps(report("grpo")), encoding="utf-8")
    assert readme.main() == 0
    assert f"| grpo {ROW}\n\n600 held-out questions, 8 samples each" in Path("README.md").read_text(encoding="utf-8")
    assert readme.PICTURE.read_text(encoding="utf-8") == chain_svg({"grpo": report("grpo")})
    Path("README.md").write_text("no markers", encoding="utf-8")
    assert readme.main() == 2
    assert "wanted the markers" in capsys.readouterr().err


def test_readme_of_this_repository_says_what_its_reports_say() -> None:
    """Without reports the block is one line that says how to get them; with any, it is exactly their table."""
    block = readme.block_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert block == readme.results_block(readme.read_evaluations(ROOT / "reports/evaluate"))


def test_picture_of_this_repository_shows_what_its_reports_say() -> None:
    """Without reports there is none."""
    evaluations = readme.read_evaluations(ROOT / "reports/evaluate")
    picture = ROOT / readme.PICTURE
    shown = picture.read_text(encoding="utf-8") if picture.is_file() else None
    assert shown == (chain_svg(evaluations) if evaluations else None)
