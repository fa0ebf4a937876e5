from __future__ import annotations

import pytest

from flows.gates import GateFailed, check_gates, metric
from posttrain.config import Floor

REPORT = {"think": {"avg": {"value": 0.4}}, "name": "sft", "format_rate": 1}
FLOOR = Floor(stage="evaluate@sft", metric="think.avg.value", at_least=0.5)


def test_a_gate_names_the_number_got_and_the_number_wanted() -> None:
    with pytest.raises(GateFailed, match=r"after evaluate@sft: think.avg.value is 0.4, wanted at least 0.5"):
        check_gates("evaluate@sft", REPORT, [FLOOR])


def test_gates_of_other_stages_and_floors_that_are_reached_let_pass() -> None:
    check_gates("evaluate@grpo", REPORT, [FLOOR])
    check_gates("evaluate@sft", REPORT, [FLOOR.model_copy(update={"at_least": 0.4})])
    check_gates("evaluate@sft", REPORT, [Floor(stage="evaluate@sft", metric="format_rate", at_least=1.0)])


@pytest.mark.parametrize("dotted", ["think.avg.high", "nothing", "name", "think.avg"])
def test_a_gate_on_a_number_that_is_not_there_is_an_error(dotted: str) -> None:
    with pytest.raises(KeyError, match=dotted.split(".")[-1]):
        metric(REPORT, dotted)
