"""Every case on a toy size: both sides are built, do two steps, and pass the parity gate. Nothing is timed."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ours, peer
from benchmarks.measure import compare
from benchmarks.settings import CASES, PROOFS, Size, load_settings
from benchmarks.turns import Stopped
from benchmarks.world import Work, made_up_tokenizer, make_groups, plain_tokens, profile_params
from posttrain.engine.policy import Policy, build_micro, save_policy
from tests.loops.toy import MICRO

SETTINGS = load_settings(Path("benchmarks/params.yaml"))
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = made_up_tokenizer(400)
    ends = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    target = tmp_path_factory.mktemp("policy")
    save_policy(Policy(build_micro(MICRO, vocab_size=len(tokenizer), **ends, seed=1), tokenizer), target)
    return target


@pytest.fixture
def work(folder, tmp_path):
    size = Size(prompts=4, group=2, prompt_tokens=6, response_tokens=8, spread=0.5, steps=1, peer_batch=(2,))
    return Work(
        folder=folder,
        params=profile_params("tiny"),
        size=size,
        groups=make_groups(size, plain_tokens(made_up_tokenizer(400)), seed=3),
        precision="fp32",
        peer_batch=2,
        sequence_length=32,
        lr=0.001,
        steps=5,
        seed=7,
        scratch=tmp_path,
    )


def values_of(runs, case, work) -> list[list[float]]:
    journal = Journal()
    with pytest.raises(Stopped):
        runs[case](work, journal)
    assert journal.began
    return journal.values


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
