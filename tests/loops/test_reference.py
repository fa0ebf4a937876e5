import json

import pytest

from posttrain.loops import reference
from posttrain.loops.reference import reference_sums
from posttrain.loops.scoring import score
from tests.loops.toy import start_policy

RESPONSES = {"train": [((5, 6), (7, 8, 2)), ((5, 6, 7), (9, 2))], "heldout": []}


def sums(file, notes, *, model=None, responses=RESPONSES):
    return reference_sums(
        model or start_policy().model, responses, file=file, micro_batch_tokens=64, note=notes.append
    )  # fmt: skip


@pytest.fixture
def kept(tmp_path):
    """The file of a first run, and what it found."""
    file, notes = tmp_path / "reference.json", []
    found = sums(file, notes)
    assert notes == []
    return file, found


def test_they_are_those_of_the_model(kept):
    rows = score(start_policy().model, RESPONSES["train"], micro_batch_tokens=64, temperature=1.0)
    assert kept[1] == {"train": [float(row.sum()) for row in rows], "heldout": []}


def test_a_second_run_reads_them(kept, monkeypatch):
    file, found = kept
    monkeypatch.setattr(reference, "shared_score", None)
    notes: list[str] = []
    assert sums(file, notes) == found and notes == []


def change_a_number(text):
    stored = json.loads(text)
    stored["sums"]["train"][0] += 1.0
    return json.dumps(stored)


@pytest.mark.parametrize(
    "damage", [change_a_number, lambda text: text[:-30], lambda text: "", lambda text: "[]", lambda text: '{"key": 1}']
)
def test_a_damaged_file_is_said_to_be_so_and_made_anew(kept, damage):
    file, found = kept
    whole = file.read_text(encoding="utf-8")
    file.write_text(damage(whole), encoding="utf-8")
    notes: list[str] = []
    assert sums(file, notes) == found
    assert notes == [f"{file}: damaged; the log-probabilities under the reference are computed again"]
    assert file.read_text(encoding="utf-8") == whole


def test_what_was_computed_from_something_else_is_not_used(kept):
    file, found = kept
    notes: list[str] = []
    other = start_policy().model
    other.lm_head.weight.data[7] += 0.5
    assert sums(file, notes, model=other)["train"] != found["train"]
    assert sums(file, notes, responses={"train": [((5, 6), (7, 8, 3))]})["train"] != found["train"][:1]
    assert len(notes) == 2 and all("of other weights or token ids; the log-prob" in note for note in notes)
