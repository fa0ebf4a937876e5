"""What the tests of the cases share: turns that end after two steps."""

from __future__ import annotations

import pytest

from benchmarks.turns import Stopped

STEPS = 2


class Journal:
    """Turns until enough steps are done."""

    def __init__(self) -> None:
        self.began = False
        self.values: list[list[float]] = []

    def begin(self) -> None:
        self.began = True

    def done(self, values, parts=None) -> None:
        self.values.append(list(values))
        if len(self.values) == STEPS:
            raise Stopped


def values_of(runs, case, work) -> list[list[float]]:
    journal = Journal()
    with pytest.raises(Stopped):
        runs[case](work, journal)
    assert journal.began
    return journal.values
