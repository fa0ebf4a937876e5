"""Every case on a toy size: both sides are built, do two steps, and pass the parity gate. Nothing is timed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ours, peer
from benchmarks.measure import compare
from benchmarks.settings import CASES, PROOFS, load_settings
from tests.benchmarks.toy_work import STEPS, values_of

SETTINGS = load_settings(Path("benchmarks/params.yaml"))


def both(case, work, monkeypatch):
    """In one process, which they never share elsewhere: our process group's variables make the peer seek a launcher."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name in launched:
        monkeypatch.delenv(name, raising=False)
    theirs = values_of(peer.RUNS, case, work)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    own = values_of(ours.RUNS, case, replace(work, scratch=work.scratch / "ours"))
    return own, theirs


@pytest.mark.parametrize("case", [case for case in CASES if PROOFS[case] == (case,)])
def test_parity_gate(case, work, monkeypatch):
    own, theirs = both(case, work, monkeypatch)
    verdict = compare(case, own, theirs, settings=SETTINGS)
    assert verdict["passed"], verdict
    if case == "generate":
        assert len(own[0]) == 4 * 8
    else:
        (_, norm), (_, later) = theirs
        # The second step sees the first one's update.
        assert norm > 0.01 and abs(later - norm) > 10 * SETTINGS.tolerance.fp32 * norm
        other = compare(case, own, [theirs[1], theirs[0]], settings=SETTINGS)
        assert not other["passed"]


def test_a_whole_grpo_step_is_built_on_both_sides(work, monkeypatch):
    own, theirs = both("grpo", work, monkeypatch)
    assert len(own) == len(theirs) == STEPS
    assert all(norm > 0.01 for _, norm in own + theirs)
    assert set(PROOFS["grpo"]) == {"grpo_update", "generate"}
