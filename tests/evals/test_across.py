import dataclasses
import json

import pytest

from posttrain.evals import across
from posttrain.evals.intervals import resample, wilson
from posttrain.evals.judge import Judged, win_rate
from posttrain.evals.rows import ModeSamples, QuestionRow
from posttrain.evals.suite import summarise
from posttrain.records import DataError
from tests.evals import worlds

DRAWS = 200


def row(name: str, *samples: tuple[bool | None, bool, int]) -> QuestionRow:
    """A question with samples (correct, mixed, tokens); right ones answer 7, wrong ones 8, and 9 has no verdict."""
    correct, mixed, tokens = zip(*samples, strict=True)
    columns = ModeSamples(
        answers=tuple({True: "7", False: "8", None: "9"}[flag] for flag in correct),
        correct=correct,
        tokens=tokens,
        thinking_tokens=tokens,
        finish=("stop",) * len(samples),
        well_formed=(True,) * len(samples),
        mixed=mixed,
        text="",
    )
    return QuestionRow(name, "sums", "3 + 4 =", "7", columns, columns, (), ())


def chain(questions: int = 30) -> dict[str, list[QuestionRow]]:
    skills = {"base": (0.3, 60), "sft": (0.5, 50), "grpo": (0.8, 40)}
    return {
        name: worlds.rows(questions=questions, skill=skill, no_think=0.1, tokens=tokens, mixed=0.2, seed=place)
        for place, (name, (skill, tokens)) in enumerate(skills.items())
    }


def test_win_rate_by_hand() -> None:
    """q1: later (right 20, wrong 5), earlier (right 10, right mixed 10): loss by length, win by script, two losses by
    correctness: 1 of 4. q2: a tie, a win by correctness, and again: 3 of 4. Mean 1/2; of 8: ties 2, correct 4."""
    rows = {
        "base": [
            row("q1", (True, False, 10), (True, True, 10)),
            row("q2", (True, False, 10), (False, False, 10)),
        ],
        "sft": [
            row("q1", (True, False, 20), (False, False, 5)),
            row("q2", (True, False, 10), (True, False, 10)),
        ],
    }
    found = across.win_rates(rows, draws=DRAWS, seed=0)
    assert list(found) == ["sft"] and list(found["sft"]) == ["base"]
    rate = found["sft"]["base"]
    assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.5, 0.25, 0.75))
    shares = {"ties": 2 / 8, "by_correct": 4 / 8, "by_script": 1 / 8, "by_length": 1 / 8}
    assert {name: rate[name] for name in shares} == pytest.approx(shares)
    assert rate["questions"] == 2


def test_matrix_is_what_each_pair_gives_either_way_round() -> None:
    rows = chain()
    matrix = across.win_matrix(across.win_rates(rows, draws=DRAWS, seed=3))
    assert list(matrix) == list(rows)
    counts = resample(30, draws=DRAWS, seed=3)
    judged = {
        name: [
            [
                Judged(flag is True, not mixed, tokens)
                for flag, mixed, tokens in zip(q.think.correct, q.think.mixed, q.think.tokens, strict=True)
            ]
            for q in answers
        ]
        for name, answers in rows.items()
    }
    for first in rows:
        for second in rows:
            cell, own = matrix[first][second], win_rate(judged[first], judged[second], counts).rate
            assert dataclasses.astuple(cell) == pytest.approx(dataclasses.astuple(own))
            assert cell.value + matrix[second][first].value == pytest.approx(1.0)
            assert cell.low + matrix[second][first].high == pytest.approx(1.0)
        assert dataclasses.astuple(matrix[first][first]) == (0.5, 0.5, 0.5)
    assert matrix["grpo"]["base"].low > 0.5


def test_matrix_keeps_the_order_of_the_chain_though_a_file_sorts_its_keys() -> None:
    found = across.win_rates(chain(), draws=DRAWS, seed=0)
    assert list(across.win_matrix(json.loads(json.dumps(found, sort_keys=True)))) == ["base", "sft", "grpo"]


def test_what_no_verifier_could_judge_is_left_out_and_not_wrong() -> None:
    whole = {"base": [row("q1", (False, False, 9))], "sft": [row("q1", (True, False, 9), (False, False, 9))]}
    some = {
        "base": [row("q1", (False, False, 9)), row("q2", (True, False, 9))],
        "sft": [row("q1", (True, False, 9), (None, False, 9), (False, False, 9)), row("q2", (None, False, 9))],
    }
    assert across.win_rates(some, draws=DRAWS, seed=0) == across.win_rates(whole, draws=DRAWS, seed=0)
    with pytest.raises(DataError, match="'sft' against 'base': got no question with a verified sample of both"):
        across.win_rates({name: rows[1:] for name, rows in some.items()}, draws=DRAWS, seed=0)


def test_calibration_by_hand() -> None:
    """Halves of three. q1 (7, 7, 8 | 7, 7, 7): 7 with 3/3 and 7 with 2/3, right; q2: 7 with 1, twice; q3: 8 with 1.

    One forecast at 2/3, right; five at 1, of which three are right: |1 - 2/3| / 6 + |3/5 - 1| * 5 / 6.
    """
    right, wrong = (True, False, 9), (False, False, 9)
    rows = [row("q1", right, right, wrong, *[right] * 3), row("q2", *[right] * 6), row("q3", *[wrong] * 6)]
    found = across.calibration_of(rows, draws=DRAWS, bins=10, seed=0)
    assert found["forecasts"] == 6
    assert found["ece_equal_mass"]["value"] == pytest.approx(1 / 18 + 1 / 3)
    low, high = found["reliability"]
    assert (low["confidence"], low["accuracy"], low["count"]) == pytest.approx((2 / 3, 1.0, 1))
    assert (high["confidence"], high["accuracy"], high["count"]) == pytest.approx((1.0, 3 / 5, 5))
    # As of one forecast for each of its three questions.
    bounds = wilson(1.8, 3)
    assert (high["low"], high["high"]) == pytest.approx((bounds.low, bounds.high))


def test_ece_is_that_of_the_evaluation_under_its_seed() -> None:
    rows = chain()
    found = across.compare_models(rows, draws=DRAWS, bins=10, seed=5)
    for name, answers in rows.items():
        own = summarise(
            answers, model=name, parameters=1, pass_at=(1,), bootstrap=DRAWS, ece_bins=10, seed=5, previous=None
        )
        error = found["calibration"][name]["ece_equal_mass"]
        assert error["value"] == own["think"]["ece_equal_mass"]
        assert error["low"] <= error["value"] <= error["high"]


def test_content_depends_on_rows_and_seed_alone() -> None:
    first, second = (
        json.dumps(across.compare_models(chain(), draws=DRAWS, bins=10, seed=1), sort_keys=True) for _ in range(2)
    )
    assert first == second
