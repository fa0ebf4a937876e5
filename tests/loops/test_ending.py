"""A loop that makes fewer steps than planned, or more, is no result."""

import builtins
from pathlib import Path

import pytest

from posttrain.errors import StageError
from posttrain.loops import distill, preference, reward_model, rl, sft
from posttrain.loops.ending import refuse_other_end
from tests.loops.every_loop import LOOPS
from tests.loops.toy import Journal


def test_only_the_planned_number_will_do() -> None:
    refuse_other_end(3, 3)
    for done in (2, 4):
        with pytest.raises(StageError, match=rf"^training ended after step {done}; wanted: all 3 planned steps$"):
            refuse_other_end(done, 3)


@pytest.mark.parametrize(
    ("name", "module"),
    [("sft", sft), ("dr_grpo", rl), ("reward_model", reward_model), ("dpo", preference), ("distill", distill)],
)
def test_a_loop_that_leaves_a_step_out_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: object
) -> None:
    def one_short(*bounds: int) -> builtins.range:
        return range(bounds[0], bounds[1] - 1) if len(bounds) == 2 else range(*bounds)

    monkeypatch.setattr(module, "range", one_short, raising=False)
    with pytest.raises(StageError, match="training ended after step"):
        LOOPS[name](tmp_path, Journal())
