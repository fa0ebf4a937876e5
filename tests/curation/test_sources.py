from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import reasoning_gym

from posttrain.config import ConfigError, Fields, HubSource, JsonlSource
from posttrain.curation.filters import GOLD_WRONG, gold_answers
from posttrain.curation.sources import HASH_ORDERED, load_sources, shares
from posttrain.loops.verification import verify
from posttrain.records import RIGHT, DataError, read_jsonl, write_jsonl
from posttrain.records import Problem as ProblemRecord
from tests.curation.builders import Family, gym_source

FIELDS = Fields(prompt="question", answer="gold", id=None, domain=None, solution=None, verifier=None, metadata=None)


def jsonl(path: Path, *lines: str, fields: Fields = FIELDS) -> JsonlSource:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return JsonlSource(kind="jsonl", path=str(path), fields=fields, verifier="math")


def test_shares_sum_to_the_total() -> None:
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert shares([0.5, 0.3, 0.2], 7) == [4, 2, 1]  # 3.5, 2.1, 1.4: the largest remainder gets the seventh
    assert sum(shares([0.4, 0.25, 0.2, 0.05, 0.1], 4999)) == 4999


def test_gym_rows_are_the_librarys_own_and_pass_its_scorer() -> None:
    source = gym_source(
        60,
        ("chain_sum", 3.0, {"max_digits": 1}),
        ("basic_arithmetic", 2.0, {"operators": ("+", "-", "*"), "max_digits": 1}),
        ("gsm_symbolic", 1.0, {}),
    )
    rows = load_sources([source], seed=0)
    counts = Counter(row.source for row in rows)
    assert counts == {"gym:chain_sum": 30, "gym:basic_arithmetic": 20, "gym:gsm_symbolic": 10}
    assert {row.domain for row in rows} == {"arithmetic"}
    assert not any("/" in row.prompt for row in rows if row.source == "gym:basic_arithmetic")
    for row in rows:
        family = row.metadata["family"]
        assert row.verifier == "gym"
        assert row.id.startswith(f"{family}-")
        entry = {"question": row.prompt, "answer": row.answer, "metadata": row.metadata}
        assert reasoning_gym.get_score_answer_fn(family)(row.answer, entry) == 1.0
    assert rows[0].prompt.startswith("State the final answer to the following arithmetic problem: ")


def test_gym_rows_survive_a_file(tmp_path: Path) -> None:
    rows = load_sources([gym_source(20, ("leg_counting", 1.0, {}))], seed=0)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl", ProblemRecord) == rows


def test_gym_depends_on_the_seed_and_not_on_its_neighbours() -> None:
    chain: Family = ("chain_sum", 1.0, {})
    legs: Family = ("leg_counting", 1.0, {})
    alone = load_sources([gym_source(10, chain)], seed=0)
    assert load_sources([gym_source(20, legs, chain)], seed=0)[10:] == alone
    assert load_sources([gym_source(10, chain)], seed=0) == alone
    assert {row.id for row in load_sources([gym_source(10, chain)], seed=1)} != {row.id for row in alone}


@pytest.mark.parametrize(
    ("family", "options"), [("no_such_family", {}), ("chain_sum", {"terms": 3}), ("chain_sum", {"min_terms": 0})]
)
def test_gym_errors_name_the_family(family: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"curate.sources: gym family '{family}'"):
        load_sources([gym_source(10, (family, 1.0, options))], seed=0)


class _Flags:
    hash_randomization = 1


def test_families_that_depend_on_string_hashing_are_refused_while_it_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "flags", _Flags())
    for family in HASH_ORDERED:
        with pytest.raises(ConfigError, match=f"'{family}'.*PYTHONHASHSEED=0"):
            load_sources([gym_source(10, (family, 1.0, {}))], seed=0)


def test_jsonl_rows(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "mine.jsonl",
        '{"question": "Solve for x: 2x = 4", "gold": 2, "note": null}',
        '{"question": "What is 1 + 1?", "gold": "2"}',
    )
    first, second = load_sources([source], seed=0)
    assert (first.prompt, first.answer, first.verifier) == ("Solve for x: 2x = 4", "2", "math")
    assert (first.domain, second.domain) == ("algebra", "arithmetic")
    assert first.source == "mine.jsonl"
    reordered = jsonl(tmp_path / "mine.jsonl", *reversed((tmp_path / "mine.jsonl").read_text().splitlines()))
    assert load_sources([reordered], seed=0) == [second, first]


def test_jsonl_own_ids_and_domains(tmp_path: Path) -> None:
    fields = Fields(
        prompt="question", answer="gold", id="key", domain="area", solution="worked", verifier="judge", metadata="needs"
    )
    source = jsonl(
        tmp_path / "mine.jsonl",
        '{"question": "q", "gold": "2", "key": 7, "area": "logic", "worked": "1 + 1"}',
        fields=fields,
    )
    (row,) = load_sources([source], seed=0)
    assert (row.id, row.domain, row.metadata) == ("mine-7", "logic", {"solution": "1 + 1"})


def test_rows_name_their_own_verifier_and_what_it_needs(tmp_path: Path) -> None:
    """A file with all kinds that its rows can name; null and nothing mean the source's."""
    fields = Fields(
        prompt="question", answer="gold", id=None, domain=None, solution=None, verifier="judge", metadata="needs"
    )
    rows = [
        {"question": "a", "gold": "2"},
        {"question": "b", "gold": "2", "judge": None, "needs": None},
        {"question": "c", "gold": "red", "judge": "exact"},
        {"question": "d", "gold": "B", "judge": "choice", "needs": {"choices": ["red", "blue"]}},
        {"question": "e", "gold": "Hi", "judge": "constraint", "needs": {"constraints": [{"kind": "no_commas"}]}},
        {"question": "f", "gold": "x = 1", "judge": "code", "needs": {"tests": "assert x == 1"}},
    ]
    loaded = load_sources([jsonl(tmp_path / "mine.jsonl", *map(json.dumps, rows), fields=fields)], seed=0)
    assert [row.verifier for row in loaded] == ["math", "math", "exact", "choice", "constraint", "code"]
    assert [row.metadata for row in loaded] == [row.get("needs") or {} for row in rows]
    assert [verify(row, row.answer) for row in loaded] == [RIGHT] * 6
    worse = [dataclasses.replace(row, answer=gold) for row, gold in zip(loaded[4:], ("Hi,", "x = 2"), strict=True)]
    assert gold_answers(worse, verify) == [GOLD_WRONG] * 2
    for line, message in (
        ({"judge": "vibes"}, "field 'judge': got 'vibes', wanted one of gym, exact"),
        ({"judge": ["exact"]}, r"field 'judge': got \['exact'\]"),
        ({"needs": "tests"}, "field 'needs': got 'tests', wanted: an object"),
    ):
        broken = json.dumps({"question": "q", "gold": "2", **line})
        with pytest.raises(DataError, match=rf"mine\.jsonl:1: {message}"):
            load_sources([jsonl(tmp_path / "mine.jsonl", broken, fields=fields)], seed=0)


GOOD = '{"question": "q", "gold": "2", "key": "a"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"question": "q", '], r"mine\.jsonl:2: column \d+: not JSON"),
        ([GOOD, "[1]"], r"mine\.jsonl:2: got a JSON list, wanted an object"),
        (['{"question": "q", "key": "a"}'], r"mine\.jsonl:1: field 'gold': missing; wanted: text or a number"),
        ([GOOD, '{"question": 5, "gold": "2", "key": "b"}'], r"mine\.jsonl:2: field 'question': got 5, wanted: text"),
        (['{"question": "q", "gold": true, "key": "b"}'], r"mine\.jsonl:1: field 'gold': got True, wanted: text or a"),
        (['{"question": "q", "gold": null, "key": "b"}'], r"mine\.jsonl:1: field 'gold': got None"),
        (['{"question": "q", "gold": [1], "key": "b"}'], r"mine\.jsonl:1: field 'gold': got \[1\]"),
        ([GOOD, GOOD], r"mine\.jsonl:2: field 'key': got 'a', which .*mine\.jsonl:1 has; wanted: its own"),
        ([], r"mine\.jsonl: empty"),
    ],
)
def test_jsonl_errors_name_file_line_and_field(tmp_path: Path, lines: list[str], message: str) -> None:
    fields = Fields(
        prompt="question", answer="gold", id="key", domain=None, solution=None, verifier=None, metadata=None
    )
    with pytest.raises(DataError, match=message):
        load_sources([jsonl(tmp_path / "mine.jsonl", *lines, fields=fields)], seed=0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = JsonlSource(kind="jsonl", path=str(tmp_path / "none.jsonl"), fields=FIELDS, verifier="math")
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load_sources([source], seed=0)


def test_one_id_for_two_problems_of_two_files(tmp_path: Path) -> None:
    fields = Fields(
        prompt="question", answer="gold", id="key", domain=None, solution=None, verifier=None, metadata=None
    )
    (tmp_path / "other").mkdir()
    one = jsonl(tmp_path / "mine.jsonl", GOOD, fields=fields)
    two = jsonl(tmp_path / "other" / "mine.jsonl", GOOD.replace('"q"', '"another"'), fields=fields)
    with pytest.raises(DataError, match=r"mine\.jsonl: field 'id': 'mine-a' also names another problem"):
        load_sources([one, two], seed=0)


def hub_source(subset: str | None = "main") -> HubSource:
    return HubSource(kind="hub", dataset="org/name", subset=subset, split="train", fields=FIELDS, verifier="math")


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "What is 1 + 1?", "gold": "2"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = load_sources([hub_source()], seed=0)
    assert asked == [(("org/name", "main"), {"split": "train"})]
    assert (row.prompt, row.answer, row.source) == ("What is 1 + 1?", "2", "org/name/main/train")


def test_hub_errors_name_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> datasets.Dataset:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="org/name/train: cannot be loaded: no network"):
        load_sources([hub_source(subset=None)], seed=0)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list([{"gold": "2"}]))
    with pytest.raises(DataError, match="org/name/main/train:1: field 'question': missing"):
        load_sources([hub_source()], seed=0)


def test_metadata_is_json_values() -> None:
    rows = load_sources([gym_source(20, ("gsm_symbolic", 1.0, {}))], seed=0)
    assert all(json.loads(json.dumps(row.metadata)) == row.metadata for row in rows)
