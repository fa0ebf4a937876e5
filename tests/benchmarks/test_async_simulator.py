"""The simulator against arithmetic: equal lengths, one slot, and nothing lost on the way."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.async_simulator import MODES, Mode, Plant, drawn, main, makespan, simulate

SYNC, ONE, TWO, SEGMENTS = Mode("sync", 0), Mode("one", 1), Mode("two", 2), Mode("segments", 1, budget=10, batches=2)
PROMPTS, GROUP, STEPS = 4, 2, 10
PLANT = Plant(workers=1, slots=8, decode=0.1, prefill=0.0, load=0.0, train=0.0)
EVEN = [[30, 30]]


def run(mode: Mode, plant: Plant, groups: list[list[int]] = EVEN, steps: int = STEPS):
    return simulate(plant, mode, prompts=PROMPTS, steps=steps, groups=drawn(groups, 0))


def plant(update: float, **changes: float) -> Plant:
    """A batch of even lengths takes 30 x 0.1 s = 3 s to sample and `update` s to train."""
    values = {"workers": 1, "slots": 8, "decode": 0.1, "prefill": 0.0, "load": 0.0, "train": update / (8 * 30)}
    return Plant(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("update", [1.0, 3.0, 6.0])
def test_equal_lengths_are_arithmetic(update: float) -> None:
    """Turns: T (g + u). One step off: g, then T - 1 times the slower of the two, then u."""
    turns, ahead = run(SYNC, plant(update)), run(ONE, plant(update))
    assert turns.seconds == pytest.approx(STEPS * (3 + update))
    assert turns.sampling / turns.seconds == pytest.approx(3 / (3 + update))
    assert turns.training / turns.seconds == pytest.approx(update / (3 + update))
    assert ahead.seconds == pytest.approx(3 + (STEPS - 1) * max(3, update) + update)
    long = run(ONE, plant(update), steps=1000)
    busy = (long.sampling / long.seconds, long.training / long.seconds)
    assert busy == pytest.approx((3 / max(3, update), update / max(3, update)), rel=2e-3)


def test_a_longer_lead_is_worth_nothing_where_no_job_is_slow() -> None:
    assert run(TWO, plant(2.0)).seconds == pytest.approx(run(ONE, plant(2.0)).seconds)


def test_a_longer_lead_hides_one_slow_job() -> None:
    """g = 1, 1, 1, 5, 1, ... s and u = 2 s.

    One step off the slow job begins 2 s before it is wanted and holds its step up by 3 s; four steps off, 4 s and 1 s.
    """
    lengths = [10, 10, 10, 50, 10, 10, 10, 10]

    def seconds(mode: Mode) -> float:
        groups = iter([length] for length in itertools.chain(*([length] * 2 for length in lengths)))
        return simulate(Plant(1, 2, 0.1, 0.0, 0.0, 0.0), mode, prompts=2, steps=8, groups=groups).seconds

    # Without training, both are the sampler's 12 s.
    assert seconds(ONE) == seconds(Mode("four", 4)) == pytest.approx(12.0)

    def trained(mode: Mode) -> float:
        groups = iter([length] for length in itertools.chain(*([length] * 2 for length in lengths)))
        # 2 s for 20 tokens, 10 s for the 100 of the slow one.
        return simulate(Plant(1, 2, 0.1, 0.0, 0.0, 0.1), mode, prompts=2, steps=8, groups=groups).seconds

    assert trained(ONE) == pytest.approx(1 + 2 + 2 + 5 + 10 + 4 * 2)
    assert trained(Mode("four", 4)) == pytest.approx(1 + 3 * 2 + 1 + 10 + 4 * 2)


def test_weights_are_loaded_once_per_job() -> None:
    assert run(SYNC, plant(1.0, load=0.5)).seconds == pytest.approx(STEPS * (0.5 + 3 + 1))


def test_the_slowest_response_holds_a_batch_up_and_segments_do_not() -> None:
    """One response in eight of 60 tokens, the others of 10: turns wait for 60; segments of 10 tokens mostly do not."""
    uneven = [[10, 10], [10, 10], [10, 10], [10, 60]]
    wide, four = replace(PLANT, slots=64), replace(SEGMENTS, batches=4)
    turns, ahead = run(SYNC, wide, uneven, 200), run(four, wide, uneven, 200)
    assert ahead.seconds < 0.6 * turns.seconds
    assert ahead.sampling / ahead.seconds > turns.sampling / turns.seconds


def test_reading_again_costs_segments_their_time() -> None:
    """Two responses of 30 in segments of 10: 10 and 20 tokens each are read again, at 1 s a token."""
    reading = Plant(workers=1, slots=2, decode=0.1, prefill=1.0, load=0.0, train=0.0)
    found = simulate(reading, SEGMENTS, prompts=1, steps=1, groups=drawn(EVEN, 0))
    assert found.seconds == pytest.approx(3.0 + 2 * (10 + 20))


@pytest.mark.parametrize("mode", [SYNC, ONE, TWO, SEGMENTS, *MODES], ids=lambda mode: mode.name)
def test_nothing_is_lost_or_made_up(mode: Mode) -> None:
    groups = [[5, 9], [40, 3], [12, 12], [33, 7]]
    found = run(mode, plant(1.0), groups, 25)
    assert found.begun == found.trained + found.left
    assert found.trained == 25 * PROMPTS and found.left == 0
    assert found.sampled_tokens == found.trained_tokens
    assert min(found.ages) >= 0 and len(found.ages) == found.trained
    if mode.budget is None:
        assert max(found.ages) == min(mode.lead, 24)
        assert found.ages[:PROMPTS] == [0] * PROMPTS
    for busy in (found.sampling, found.training):
        assert 0 < busy <= found.seconds


def test_tasks_go_to_the_slot_that_is_free_first() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([1.0, 1.0, 1.0, 3.0], 2) == 4.0
    assert makespan([2.0, 1.0, 4.0], 1) == 7.0
    assert makespan([2.0, 5.0], 3) == 5.0


def test_workers_share_the_work_and_the_trainer_grows_with_them() -> None:
    """Four times the machines and four times the batch: the same seconds, where lengths are equal."""
    one = run(ONE, plant(2.0))
    four = simulate(plant(2.0, workers=4), ONE, prompts=4 * PROMPTS, steps=STEPS, groups=drawn(EVEN, 0))
    assert four.seconds == pytest.approx(one.seconds)


def test_what_it_prints_says_what_it_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "problem_id": f"p{number // 2}",
            "prompt_ids": [1],
            "response_ids": [1] * (number + 1),
            "logprobs": [0.0] * (number + 1),
            "finish": "stop",
            "version_per_token": [0] * (number + 1),
        }
        for number in range(6)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["--samples", str(path), "--prompts", "2", "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SIMULATION") and "6 responses to 3 problems" in said and "mean 3.5 tokens" in said
    assert "| 1,024 | one_step_off |" in said
    assert main(["--samples", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
