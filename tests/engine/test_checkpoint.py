"""Checkpoints: whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.engine import checkpoint
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint


def state(value: int) -> dict[str, Any]:
    return {"weights": torch.full((3,), float(value)), "order": [1, 2], "names": {"a": ("b", None)}, "step": value}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new", 7, state(7))
    found = latest_checkpoint(tmp_path / "new")
    assert found is not None
    step, loaded = found
    assert step == 7
    assert torch.equal(loaded.pop("weights"), torch.full((3,), 7.0))
    assert loaded == {"order": [1, 2], "names": {"a": ("b", None)}, "step": 7}


def test_no_folder_and_an_empty_folder_hold_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000100"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[0] == 100


def test_a_checkpoint_may_be_written_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(1))
    save_checkpoint(tmp_path, 5, state(2))
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 2


def test_later_ones_are_of_another_life_and_never_pass_for_newer(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, state(step))
    save_checkpoint(tmp_path, 12, state(12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[0] == 12


def damage_mark_missing(folder: Path) -> None:
    (folder / "COMMITTED").unlink()


def damage_mark_cut(folder: Path) -> None:
    (folder / "COMMITTED").write_text('{"step": 10, "sha', encoding="utf-8")


def damage_file_cut(folder: Path) -> None:
    part = folder / "state-0.pt"
    part.write_bytes(part.read_bytes()[:-20])


def damage_one_byte(folder: Path) -> None:
    part = folder / "state-0.pt"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))


def damage_other_ranks(folder: Path) -> None:
    mark = json.loads((folder / "COMMITTED").read_text(encoding="utf-8"))
    mark["sha256"]["state-1.pt"] = "0"
    (folder / "COMMITTED").write_text(json.dumps(mark), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_mark_missing, "COMMITTED is missing"),
        (damage_mark_cut, "COMMITTED cannot be read: JSONDecodeError"),
        (damage_file_cut, "state-0.pt is not as it was written"),
        (damage_one_byte, "state-0.pt is not as it was written"),
        (damage_other_ranks, "written by 2 processes, this run has 1"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, 5, state(5))
    save_checkpoint(tmp_path, 10, state(10))
    damage(tmp_path / "step-00000010")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[0] == 5
    assert f"step-00000010: passed over: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("dies_at", ["save", "rename", "_write_mark"])
def test_dying_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    save_checkpoint(tmp_path, 5, state(5))

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    owner = {"save": torch, "rename": Path, "_write_mark": checkpoint}[dies_at]
    with monkeypatch.context() as patch:
        patch.setattr(owner, dies_at, die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 10, state(10))
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[0] == 5
    save_checkpoint(tmp_path, 10, state(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    save_checkpoint(tmp_path, 1, {"x": Harmful()})
    with pytest.raises(Exception, match="weights_only"):
        latest_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
