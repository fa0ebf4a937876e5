"""Gates between stages: a stage that did not reach its floor stops the chain and says which number. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Floor


class GateFailed(Exception):
    """A number below its floor; the stages behind it would build on something that is not there."""

    def __init__(self, floor: Floor, got: float) -> None:
        super().__init__(f"gate after {floor.stage}: {floor.metric} is {got:g}, wanted at least {floor.at_least:g}")
        self.floor = floor
        self.got = got


def check_gates(stage: str, report: Mapping[str, Any], floors: Sequence[Floor]) -> None:
    """Raise GateFailed for the first floor of this stage that its report does not reach."""
    for floor in floors:
        if floor.stage == stage:
            got = metric(report, floor.metric)
            if not got >= floor.at_least:
                raise GateFailed(floor, got)


def metric(report: Mapping[str, Any], dotted: str) -> float:
    """`think.avg.value` of nested mappings; a path that leads nowhere raises KeyError naming it."""
    value: Any = report
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(f"no number '{dotted}' in the report; '{part}' is missing")
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KeyError(f"'{dotted}' in the report is {value!r}, not a number")
    return float(value)
