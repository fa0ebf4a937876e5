"""Sampling ahead: a schedule by step numbers, the same bits however it is cut, and what a slow side does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import ConfigError
from posttrain.engine.policy import Policy
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.errors import StageError
from posttrain.loops import rl, rl_ahead
from posttrain.loops.rl_ahead import Waiting, pack, unpack
from posttrain.loops.rl_stream import Group
from posttrain.records import Rollout
from tests.loops.test_rl import train
from tests.loops.toy import ENGINE, Journal, objective, rl_section, same_weights, start_policy, weights_of

SEGMENTS = {"kind": "budget", "tokens": 8, "batches": 2, "train": "all"}
LOOSE = {"mismatch_budget": 100.0, "save_every": 100}


def behind(steps: int, partial: Any = "none") -> dict[str, Any]:
    return {"kind": "async", "max_staleness": steps, "partial": partial}


MODES = {
    "one_step_off": "one_step_off",
    "async": behind(2),
    "partial": behind(3, SEGMENTS),
    "fresh": behind(3, SEGMENTS | {"train": "fresh"}),
}


def steady(journal: Journal) -> list[dict[str, float]]:
    """What was logged, but for times."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for _, row in journal.rows]


def test_no_staleness_is_turns_bit_for_bit(tmp_path: Path) -> None:
    """Through the thread and the frozen copy, and yet the same weights and metrics."""
    section = {"steps": 4, "epochs": 2, "minibatches": 2, "sampling": "prioritised"}
    results = [
        train(tmp_path / str(number), rl_section(asynchrony=mode, **section, **LOOSE), measure_at={0, 2, 4})
        for number, mode in enumerate(("sync", behind(0)))
    ]
    (turns, summary, turns_journal), (ahead, ahead_summary, ahead_journal) = results
    assert same_weights(weights_of(turns), weights_of(ahead))
    assert summary["heldout"] == ahead_summary["heldout"]
    for row, other in zip(steady(turns_journal), steady(ahead_journal), strict=True):
        assert row == {name: other[name] for name in row}


def test_one_step_off_is_a_staleness_of_one(tmp_path: Path) -> None:
    results = [
        train(tmp_path / str(number), rl_section(asynchrony=mode, steps=4, **LOOSE))
        for number, mode in enumerate(("one_step_off", behind(1)))
    ]
    assert same_weights(*(weights_of(policy) for policy, _, _ in results))
    assert steady(results[0][2]) == steady(results[1][2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop_after", [4, 5])
def test_interrupted_is_uninterrupted(tmp_path: Path, mode: str, stop_after: int) -> None:
    section = rl_section(asynchrony=MODES[mode], steps=7, **(LOOSE | {"save_every": 2}))
    whole, summary, whole_journal = train(tmp_path / "whole", section, measure_at={0, 5})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", section, journal=Journal(stop_after=stop_after))
    resumed, resumed_summary, rest = train(tmp_path / "cut", section, measure_at={5})
    assert rest.rows[0][0] == 3 if stop_after == 4 else 5
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert all(summary[part] == resumed_summary[part] for part in ("start", "end"))
    assert steady(whole_journal)[-1] == steady(rest)[-1]


def test_staleness_is_the_lead_from_the_first_step_it_can_be(tmp_path: Path) -> None:
    _, _, journal = train(tmp_path, rl_section(asynchrony=behind(2), steps=5, **LOOSE))
    for (_, row), age in zip(journal.rows, (0, 1, 2, 2, 2), strict=True):
        assert row["rollout/staleness"] == row["rollout/staleness_max"] == age
        tokens = [row[f"rollout/tokens_behind_{number}"] for number in range(3)]
        assert tokens[age] == sum(tokens) == pytest.approx(row["length/mean"] * 32)
        assert row["rollout/dropped"] == row["rollout/asked_again"] == row["rollout/waiting"] == 0.0
        assert {"time/wait_sampler", "time/wait_trainer", "time/generate"} <= set(row)
    # The first update has not been made when batches 0 to 2 are sampled: batch 0 is on-policy, the others not.
    mismatches = [row["rollout/mismatch"] for _, row in journal.rows]
    assert mismatches[0] < 1e-5 < 1e-3 < min(mismatches[1:])


def test_every_token_is_of_the_version_it_says(tmp_path: Path) -> None:
    """In segments, too: each token's log-probability is that of the weights of its version."""
    policy = start_policy()
    sampler = TransformersEngine(policy, batch=ENGINE.rollout_batch, tolerance=ENGINE.canary_tolerance)
    weights: dict[int, torch.nn.Module] = {}
    load = sampler.load_weights

    def remember(model: Any, version: int) -> None:
        load(model, version)
        weights[version] = start_policy().model
        weights[version].load_state_dict(model.state_dict())

    sampler.load_weights = remember  # type: ignore[method-assign]
    seen: list[Rollout] = []
    collect = rl.Collector.collect

    def watch(self: Any, *arguments: Any) -> Any:
        batch = collect(self, *arguments)
        seen.extend(sample.rollout for group in batch.samples for sample in group)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.Collector, "collect", watch)
        section = rl_section(asynchrony=behind(3, SEGMENTS), steps=4, **LOOSE)
        train(tmp_path, section, policy=policy, rollouts=sampler)
    mixed = [rollout for rollout in seen if len(set(rollout.version_per_token)) > 1]
    assert mixed and len(seen) == 4 * 32
    for rollout in mixed[:8]:
        assert list(rollout.version_per_token) == sorted(rollout.version_per_token)
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        for place, (version, reported) in enumerate(zip(rollout.version_per_token, rollout.logprobs, strict=True)):
            at = len(rollout.prompt_ids) + place
            with torch.no_grad():
                logits = weights[version](ids[:, :at]).logits[0, -1]
            assert float(torch.log_softmax(logits, -1)[ids[0, at]]) == pytest.approx(reported, abs=1e-4)


class Watched(TransformersEngine):
    """Does something before each call that samples at temperature 1; canaries pass."""

    def __init__(self, policy: Policy, before: Any) -> None:
        super().__init__(policy, batch=ENGINE.rollout_batch, tolerance=ENGINE.canary_tolerance)
        self.before = before

    def generate(self, requests: Sequence[Any], **how: Any) -> list[Rollout]:
        if how["generation"].temperature > 0:
            self.before()
        return super().generate(requests, **how)


def test_the_next_batch_is_sampled_during_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update waits for the sampler to begin, and the sampler for the update: only at once can both go on."""
    updating, sampling = threading.Semaphore(0), threading.Semaphore(0)
    update, calls = rl.update, iter(range(10))

    def meet() -> None:
        if next(calls) > 0:  # the first batch has no update to run beside
            sampling.release()
            assert updating.acquire(timeout=20), "no update while sampling"

    def slow(learner: Any, *arguments: Any, step: int, **others: Any) -> Any:
        if step < 2:
            updating.release()
            assert sampling.acquire(timeout=20), "no sampling during the update"
        return update(learner, *arguments, step=step, **others)

    monkeypatch.setattr(rl, "update", slow)
    policy = start_policy()
    section = rl_section(asynchrony="one_step_off", steps=3, **LOOSE)
    train(tmp_path, section, policy=policy, rollouts=Watched(policy, meet))
    assert next(calls) == 3


def test_an_error_of_the_thread_stops_the_run_with_its_message(tmp_path: Path) -> None:
    calls = iter(range(10))

    def fail() -> None:
        if next(calls) == 2:
            raise StageError("the server has gone")

    policy = start_policy()
    journal = Journal()
    with pytest.raises(StageError, match="the server has gone"):
        section = rl_section(asynchrony="one_step_off", steps=5, **LOOSE)
        train(tmp_path, section, policy=policy, rollouts=Watched(policy, fail), journal=journal)
    assert [step for step, _ in journal.rows] == [1, 2]


def test_a_sampler_that_hangs_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_ahead, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(rl_ahead, "CLOSE_SECONDS", 0.0)
    policy = start_policy()
    with pytest.raises(StageError, match="has not answered within 0 s"):
        section = rl_section(asynchrony="one_step_off", steps=2, **LOOSE)
        train(tmp_path, section, policy=policy, rollouts=Watched(policy, lambda: time.sleep(3.0)))


def test_segments_give_whole_groups_and_keep_to_the_bound(tmp_path: Path) -> None:
    _, _, journal = train(tmp_path, rl_section(asynchrony=MODES["partial"], steps=8, **LOOSE))
    rows = [row for _, row in journal.rows]
    assert max(row["rollout/staleness_max"] for row in rows) <= 3
    assert any(row["rollout/tokens_behind_1"] and row["rollout/tokens_behind_2"] for row in rows)
    # Two batches under way: after each step's was taken, at most one more is waiting, and none at the end.
    assert all(row["rollout/waiting"] == 4 for row in rows[1:-1]) and rows[-1]["rollout/waiting"] == 0


def test_stale_samples_teach_when_they_are_weighed(tmp_path: Path) -> None:
    weighed = objective()["objective"] | {"correction": {"kind": "truncated", "cap": 2.0}}
    section = rl_section(asynchrony="one_step_off", objective=weighed, steps=20, **LOOSE)
    _, _, journal = train(tmp_path, section)
    accuracy = [row["reward/accuracy"] for _, row in journal.rows]
    assert 0.2 < accuracy[0] < 0.7 and sum(accuracy[-5:]) / 5 > 0.8


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_ahead, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="asynchrony: got 'one_step_off' with 2 processes, wanted 'sync'"):
        train(tmp_path, rl_section(asynchrony="one_step_off", steps=1))


def group(index: int, *versions: int, finish: Any = "stop") -> Group:
    """Of one response, a token for each version."""
    ids = tuple(range(len(versions)))
    return Group(index, (Rollout(f"p{index}", (1,), ids, (0.0,) * len(ids), finish, versions),))


def test_what_is_too_old_makes_way_for_its_prompt() -> None:
    waiting = Waiting()
    waiting.take([group(0, 1, 4), group(1, 2, 2), group(2, 2, 3, finish="length"), group(3, 1, finish="length")], 8)
    assert [g.index for g in waiting.ready] == [0, 1] and [g.index for g in waiting.running] == [2, 3]
    assert waiting.drop(oldest=2) == 2
    assert waiting.again == [0, 3]
    assert [g.index for g in waiting.ready] == [1] and [g.index for g in waiting.running] == [2]


def test_the_oldest_are_given_first_and_otherwise_in_order() -> None:
    waiting = Waiting([group(0, 3), group(1, 2, 3), group(2, 3), group(3, 2)])
    assert [g.index for g in waiting.give(3)] == [1, 3, 0]
    assert [g.index for g in waiting.ready] == [2]


def test_what_is_as_long_as_allowed_or_goes_in_circles_has_ended() -> None:
    waiting = Waiting()
    circle = Group(5, (Rollout("p", (1,), (7,) * 27, (0.0,) * 27, "length", (0,) * 27),))
    waiting.take([group(0, 1, 1, finish="length"), circle], 2)
    assert [g.index for g in waiting.ready] == [0, 5]
    assert unpack(pack(waiting.ready)) == waiting.ready
