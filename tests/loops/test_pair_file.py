"""A user's own pairs: what is made of a row, and what is refused, by file and line."""

import json
import re

import pytest

from posttrain.chat.template import decode_ids
from posttrain.loops.pair_file import read_pair_file
from posttrain.loops.pair_inputs import pair_ids
from posttrain.records import DataError
from tests.chat.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
RIGHT, WRONG = "<think>\nso\n</think>\n\n\\boxed{7}", "<think>\nso\n</think>\n\n\\boxed{8}<|im_end|>"


def row(number: int = 0, **changes) -> dict:
    return {"prompt": f"{number} + 4?", "chosen": RIGHT, "rejected": WRONG} | changes


def read(folder, rows, **changes):
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    numbers = {"max_tokens": 100, "heldout_share": 0.5, "seed": 1} | changes
    return read_pair_file(path, TOKENIZER, **numbers)


def test_a_row_becomes_a_pair_in_text_and_ids(tmp_path):
    first, second, _ = read(tmp_path, [row(), row(rejected="\\boxed{9}"), row(1)], heldout_share=0.0)
    assert (first.prompt, first.judge, first.margin, first.split) == ("0 + 4?", "file", 1.0, "train")
    assert first.problem_id == second.problem_id and re.fullmatch(r"mine-[0-9a-f]{16}", first.problem_id)
    assert (first.id, second.id) == (f"{first.problem_id}-0", f"{first.problem_id}-1")
    for pair in (first, second):
        assert decode_ids(TOKENIZER, pair.chosen_ids) == pair.chosen == RIGHT + "<|im_end|>"
        assert decode_ids(TOKENIZER, pair.rejected_ids) == pair.rejected
        assert pair_ids(TOKENIZER, pair)[0] == (pair.prompt_ids, pair.chosen_ids)
    assert "0 + 4?" in decode_ids(TOKENIZER, first.prompt_ids)
    assert first.rejected == WRONG


def test_margins_are_the_users(tmp_path):
    assert [pair.margin for pair in read(tmp_path, [row(0, margin=0), row(1, margin=2.5)])] == [0.0, 2.5]


def test_a_prompt_is_in_the_split_that_it_names_or_is_drawn_whole(tmp_path):
    rows = [row(i, **({"split": "heldout"} if i == 5 and copy else {})) for copy in range(2) for i in range(40)]
    pairs = read(tmp_path, rows, heldout_share=0.4)
    splits = {pair.prompt: {p.split for p in pairs if p.prompt == pair.prompt} for pair in pairs}
    assert all(len(found) == 1 for found in splits.values())
    assert splits["5 + 4?"] == {"heldout"}
    assert 6 < sum(found == {"heldout"} for found in splits.values()) < 28
    assert {pair.split for pair in read(tmp_path, rows, heldout_share=0.0) if pair.prompt != "5 + 4?"} == {"train"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": None}, r":2: field 'chosen': got None, wanted: .*string"),
        ({"choosen": RIGHT}, r":2: field 'choosen': got .*, wanted: Extra inputs are not permitted"),
        ({"margin": -1.0}, r":2: field 'margin': got -1.0, wanted: .*greater than or equal to 0"),
        ({"margin": float("nan")}, r":2: field 'margin': got nan, wanted: .*"),
        ({"margin": True}, r":2: field 'margin': got True, wanted: .*number"),
        ({"split": "test"}, r":2: field 'split': got 'test', wanted: .*'train' or 'heldout'"),
        ({"prompt": "a<|im_end|>b"}, r":2: field 'prompt': got '<\|im_end\|>' inside the text"),
        ({"rejected": "<|im_start|>user"}, r":2: field 'rejected': got '<\|im_start\|>' inside the text"),
        ({"chosen": "\\boxed{7}" * 40}, r":2: field 'chosen': got \d+ tokens with the prompt, wanted at most 100: it"),
        ({"chosen": ""}, r":2: problem 'mine-.*': field 'chosen': got .*, wanted a response that is not empty"),
        ({"rejected": RIGHT}, r":2: problem 'mine-.*': field 'rejected': got the text of 'chosen'"),
        ({"rejected": "<think>\nso"}, r":2: problem 'mine-.*': field 'rejected': got a response .* was cut off"),
        ({"prompt": "0 + 4?", "split": "heldout"}, r":2: field 'split': got 'heldout', and .*:1 has the same prompt"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(tmp_path, changes, said):
    margin = {"margin": 1.0} if "margin" in changes else {}
    rows = [row(0, split="train", **margin), row(1, **changes), row(2, **margin)]
    with pytest.raises(DataError, match=rf"mine.jsonl{said}"):
        read(tmp_path, rows)


def test_what_is_wrong_with_the_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_pair_file(tmp_path / "absent.jsonl", TOKENIZER, max_tokens=9, heldout_share=0.0, seed=0)
    with pytest.raises(DataError, match=r"mine.jsonl: empty"):
        read(tmp_path, [])
    with pytest.raises(DataError, match=r"mine.jsonl:1: field 'margin': missing; wanted: in every row or in none"):
        read(tmp_path, [row(0), row(1, margin=1.0)])
    with pytest.raises(DataError, match=r"mine.jsonl: got pairs of 1 prompts, wanted at least 2"):
        read(tmp_path, [row(0), row(0, rejected="\\boxed{9}")], heldout_share=0.0)
    (tmp_path / "mine.jsonl").write_text('{"prompt": \n')
    with pytest.raises(DataError, match=r"mine.jsonl:1: column .*: not JSON"):
        read_pair_file(tmp_path / "mine.jsonl", TOKENIZER, max_tokens=9, heldout_share=0.0, seed=0)
