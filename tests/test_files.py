from __future__ import annotations

import math
from pathlib import Path

import pytest

from posttrain.files import curve_csv, flatten, journal_rows, remove, rounded, write_atomic


def test_rounded_keeps_six_significant_digits_and_whole_numbers() -> None:
    assert rounded({"a": 1 / 3, "b": [123456789.0, 12345678], "c": True, "d": None, "e": "x"}) == {
        "a": 0.333333,
        "b": [123457000.0, 12345678],
        "c": True,
        "d": None,
        "e": "x",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rounded_refuses_what_is_not_a_number_and_names_it(value: float) -> None:
    with pytest.raises(ValueError, match=r"think: avg: got (nan|inf), wanted a finite number"):
        rounded({"think": {"avg": value}})


def test_flatten_keeps_numbers_only() -> None:
    assert flatten({"a": {"b": 1, "c": "x", "d": True}, "e": [1.0], "f": 2.5}) == {"a/b": 1.0, "f": 2.5}


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\udc80")  # cannot be encoded: fails while writing
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_curve_of_a_restarted_run(tmp_path: Path) -> None:
    journal = tmp_path / "curve.jsonl"
    journal.write_text(
        '{"loss": 3.0, "step": 1}\n{"loss": 2.0, "step": 2}\n{"loss": 9.0, "st\n'  # killed while writing
        '{"loss": 2.5, "step": 2}\n{"kl": 0.1, "loss": 1.0, "step": 3}\n'  # goes on from the checkpoint of step 1
    )
    assert curve_csv(journal_rows(journal)) == "step,kl,loss\n1,,3.0\n2,,2.5\n3,0.1,1.0\n"
    assert journal_rows(tmp_path / "none") == []


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "file").touch()
    for name in ("folder", "file", "nothing"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
