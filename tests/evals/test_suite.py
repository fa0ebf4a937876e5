import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.evals import suite
from posttrain.evals.rows import BudgetSample, ModeSamples, QuestionRow, read_rows, same_questions, write_rows
from posttrain.records import DataError
from tests.evals import worlds

NUMBERS: dict[str, Any] = {"pass_at": (1, 2), "bootstrap": 500, "ece_bins": 10, "seed": 3}


def mode(answers: list[str | None], correct: list[bool | None], tokens: list[int]) -> ModeSamples:
    k = len(answers)
    return ModeSamples(
        answers=tuple(answers),
        correct=tuple(correct),
        tokens=tuple(tokens),
        thinking_tokens=tuple(n - 2 for n in tokens),
        finish=("stop",) * (k - 1) + ("length",),
        well_formed=(True,) * (k - 1) + (False,),
        mixed=(True,) + (False,) * (k - 1),
        text="",
    )


def row(identity: str, think: ModeSamples, *, budget: tuple[BudgetSample, ...] = ()) -> QuestionRow:
    return QuestionRow(identity, "sums", "1 + 6", "7", think, think, (True, False), budget)


TWO = [
    row(
        "a",
        mode(["7", "7", "7", "3"], [True, True, True, False], [10, 20, 30, 80]),
        budget=(BudgetSample(5, True, False),),
    ),
    row(
        "b",
        mode(["1", "2", None, "7"], [False, False, False, True], [40, 40, 40, 40]),
        budget=(BudgetSample(5, False, True),),
    ),
]


def test_numbers_of_two_questions_by_hand() -> None:
    got = suite.summarise(TWO, model="m", parameters=10, previous=None, **NUMBERS)
    think = got["think"]
    assert think["avg"]["value"] == pytest.approx(4 / 8)
    assert (think["avg"]["low"], think["avg"]["high"]) == pytest.approx((0.25, 0.75))
    assert think["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    # 1 - C(1,2)/C(4,2) = 1 and 1 - C(3,2)/C(4,2) = .5
    assert think["pass_at_k"]["2"]["value"] == pytest.approx(0.75)
    assert think["maj_at_k"]["k"] == 4
    assert think["tokens_mean"] == pytest.approx(300 / 8)
    assert think["tokens_mean_correct"] == pytest.approx((10 + 20 + 30 + 40) / 4)
    assert think["tokens_mean_wrong"] == pytest.approx((80 + 120) / 4)
    assert think["tokens_thinking"] == pytest.approx(300 / 8 - 2)
    assert think["tokens_p95"] == pytest.approx(np.percentile([10, 20, 30, 80, 40, 40, 40, 40], 95))
    assert (think["truncation_rate"], think["format_rate"], think["language_mixing"]) == (0.25, 0.75, 0.25)
    assert think["no_answer"] == 1 / 8
    assert think["by_domain"] == {"sums": {"value": 0.5, "questions": 2}}
    assert got["mode_following"] == 0.5
    assert got["budget"][0]["accuracy"] == 0.5
    assert got["budget"][0]["forced"] == 0.5
    assert got["paired_to_previous"] is None


def test_keys_that_others_rely_on() -> None:
    got = suite.summarise(TWO, model="m", parameters=10, previous=("before", TWO), **NUMBERS)
    assert {"model", "parameters", "questions", "samples", "think", "no_think"} <= set(got)
    assert {"mode_following", "budget", "paired_to_previous"} <= set(got)
    assert set(got["think"]) == set(got["no_think"])
    wanted = {"avg", "pass_at_k", "tokens_mean", "tokens_mean_correct", "tokens_mean_wrong", "language_mixing", "ece"}
    assert wanted <= set(got["think"])
    assert {"value", "low", "high"} <= set(got["think"]["avg"])
    assert set(got["budget"][0]) >= {"tokens", "accuracy", "low", "high"}
    pair = got["paired_to_previous"]
    assert pair == {"previous": "before", "difference": 0, "low": 0, "high": 0, "no_think": pair["no_think"]}
    json.dumps(got, allow_nan=False)


def test_crashed_verifiers_are_not_wrong_answers() -> None:
    """The unverified sample leaves every accuracy: 3 of 7, and 2 of 3 verified in the first question."""
    first = mode(["7", "7", "7", "3"], [None, True, True, False], [10, 20, 30, 80])
    got = suite.summarise([row("a", first), TWO[1]], model="m", parameters=1, previous=None, **NUMBERS)["think"]
    assert got["avg"]["value"] == pytest.approx(3 / 7)
    assert got["unverified"] == 1 / 8
    assert got["tokens_mean_wrong"] == pytest.approx((80 + 120) / 4)
    assert got["tokens_mean"] == pytest.approx(300 / 8)


def test_no_right_answer_at_all() -> None:
    wrong = mode(["1", None], [False, False], [5, 5])
    got = suite.summarise(
        [row("a", wrong), row("b", wrong)], model="m", parameters=1, previous=None, **NUMBERS | {"pass_at": (1,)}
    )
    assert got["think"]["tokens_mean_correct"] is None
    assert got["think"]["avg"]["value"] == 0.0
    assert got["think"]["auroc"] is None


def test_more_samples_asked_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"evaluate.pass_at: got 8, wanted at most the 4 samples"):
        suite.summarise(TWO, model="m", parameters=1, previous=None, **NUMBERS | {"pass_at": (8,)})


def test_a_better_model_is_seen_with_its_interval() -> None:
    before = worlds.rows(questions=150, skill=0.5, no_think=0.2, tokens=40)
    after = worlds.rows(questions=150, skill=0.8, no_think=0.2, tokens=30)
    pair = suite.summarise(after, model="m", parameters=1, previous=("n", before), **NUMBERS)["paired_to_previous"]
    assert 0.15 < pair["low"] < pair["difference"] < pair["high"] < 0.4
    assert pair["no_think"]["low"] < 0 < pair["no_think"]["high"]


def test_order_of_questions_moves_nothing_but_the_draws() -> None:
    made = worlds.rows(questions=60, skill=0.6, no_think=0.2, tokens=40)
    one = suite.summarise(made, model="m", parameters=1, previous=None, **NUMBERS)
    two = suite.summarise(made[::-1], model="m", parameters=1, previous=None, **NUMBERS)
    for name in ("tokens_mean", "tokens_p95", "ece", "brier", "format_rate"):
        assert one["think"][name] == pytest.approx(two["think"][name])
    assert one["think"]["avg"]["value"] == two["think"]["avg"]["value"]
    assert one == suite.summarise(made, model="m", parameters=1, previous=None, **NUMBERS)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    made = worlds.rows(questions=5, skill=0.6, no_think=0.2, tokens=40)
    write_rows(tmp_path / "m.jsonl", made)
    assert read_rows(tmp_path / "m.jsonl") == made
    first = (tmp_path / "m.jsonl").read_bytes()
    write_rows(tmp_path / "m.jsonl", made)
    assert (tmp_path / "m.jsonl").read_bytes() == first


def test_broken_rows_name_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    made = worlds.rows(questions=2, skill=0.6, no_think=0.2, tokens=40)
    write_rows(path, made)
    good, _ = path.read_text().splitlines()
    path.write_text(good + "\n" + good.replace('"gold": "', '"old": "') + "\n")
    with pytest.raises(DataError, match=r"m.jsonl:2: field 'gold'"):
        read_rows(path)
    path.write_text("")
    with pytest.raises(DataError, match="empty"):
        read_rows(path)
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")


def test_different_questions_are_not_paired() -> None:
    made = worlds.rows(questions=3, skill=0.6, no_think=0.2, tokens=40)
    with pytest.raises(DataError, match="'q002' is in one of them only"):
        same_questions(made, made[:2])
    with pytest.raises(DataError, match="order"):
        same_questions(made, made[::-1])
    same_questions(made, [dataclasses.replace(r, prompt="else") for r in made])
