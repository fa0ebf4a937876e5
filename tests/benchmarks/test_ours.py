"""Our side of every case does its steps, whether the peer is installed or not."""

import math

import pytest

from benchmarks import ours
from benchmarks.settings import CASES
from tests.benchmarks.toy_work import values_of


@pytest.mark.parametrize("case", CASES)
def test_our_side_takes_its_steps(case, work):
    first, second = values_of(ours.RUNS, case, work)
    if case == "generate":
        assert len(first) == 4 * 8 and second == []
    else:
        (loss, norm), (_, later) = first, second
        assert math.isfinite(loss) and norm > 0.01 and later != norm
