"""Learning rates, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config import Optimizer
from posttrain.engine.schedule import learning_rate, warmup_steps


def optimizer(**changes: Any) -> Optimizer:
    fields: dict[str, Any] = {
        "kind": "adamw",
        "lr": 1.0,
        "schedule": "linear",
        "warmup": 0.4,
        "final_lr_ratio": 0.1,
        "weight_decay": 0.0,
        "betas": (0.9, 0.95),
        "grad_clip": 1.0,
    }
    return Optimizer(**(fields | changes))


def rates(total: int, **changes: Any) -> list[float]:
    return [learning_rate(step, total_steps=total, optimizer=optimizer(**changes)) for step in range(total)]


def test_linear_rises_over_the_warmup_and_ends_at_the_final_share() -> None:
    # 10 steps, 4 of warm-up: 1/4 ... 4/4; then 6 steps from 1.0 to 0.1 in five equal falls of 0.18.
    wanted = [0.25, 0.5, 0.75, 1.0, 1.0, 0.82, 0.64, 0.46, 0.28, 0.1]
    assert rates(10) == pytest.approx(wanted)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    # No warm-up, 5 steps: progress 0, .25, .5, .75, 1; 0.5 * (1 + cos(pi * p)) = 1, .853553, .5, .146447, 0.
    wanted = [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    assert rates(5, schedule="cosine", warmup=0.0, final_lr_ratio=0.0) == pytest.approx(wanted)


def test_constant_after_the_warmup() -> None:
    assert rates(4, schedule="constant", warmup=0.5) == [0.5, 1.0, 1.0, 1.0]


def test_a_share_above_zero_warms_up_for_at_least_one_step() -> None:
    assert warmup_steps(10, 0.0) == 0
    assert warmup_steps(10, 0.01) == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2])
def test_short_runs_have_rates_above_zero(schedule: str, total: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(total, schedule=schedule))


def test_steps_beyond_the_plan_keep_the_last_rate() -> None:
    assert learning_rate(50, total_steps=10, optimizer=optimizer()) == pytest.approx(0.1)
