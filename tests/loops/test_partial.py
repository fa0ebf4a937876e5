"""Responses in segments: the same as without them while the weights stay, and known by the weights of each token."""

from __future__ import annotations

import dataclasses

from posttrain.config import Generation
from posttrain.engine.policy import Policy
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.loops.partial import can_go_on, extend, fresh_tokens, repeats
from posttrain.records import Rollout
from tests.engine.conftest import micro_model, micro_tokenizer
from tests.engine.test_rollout_transformers import prompts

GREEDY = Generation(temperature=0.0, max_new_tokens=24)


def engine_of(seed: int = 0) -> TransformersEngine:
    return TransformersEngine(Policy(micro_model(seed=seed, scale=2.0), micro_tokenizer()), batch=64, tolerance=1e-4)


def begun() -> list[Rollout]:
    return [Rollout(r.problem_id, r.prompt_ids, (), (), "length", ()) for r in prompts(6)]


def test_three_segments_under_frozen_weights_are_the_uninterrupted_run() -> None:
    free = engine_of().generate(prompts(6), samples=1, generation=GREEDY, seed=1, stop_ids=(2,))
    stops = (2, free[0].response_ids[12])  # so that at least one response ends, in its second segment or before
    whole = engine_of().generate(prompts(6), samples=1, generation=GREEDY, seed=1, stop_ids=stops)
    parts = begun()
    engine = engine_of()
    for version in range(3):
        engine.version = version
        parts = extend(engine, parts, budget=8, generation=GREEDY, seed=version, stop_ids=stops)
    assert [part.response_ids for part in parts] == [rollout.response_ids for rollout in whole]
    assert [part.finish for part in parts] == [rollout.finish for rollout in whole]
    assert {part.finish for part in parts} == {"stop", "length"}
    longest = max(parts, key=lambda part: len(part.response_ids))
    assert longest.version_per_token == (0,) * 8 + (1,) * 8 + (2,) * 8
    assert all(len(part.logprobs) == len(part.response_ids) == len(part.version_per_token) for part in parts)


def test_the_budget_is_of_an_iteration_and_the_limit_of_the_whole_response() -> None:
    parts = extend(engine_of(), begun(), budget=10, generation=GREEDY, seed=0, stop_ids=(2,))
    uneven = [dataclasses.replace(parts[0], response_ids=parts[0].response_ids[:3], finish="length"), *parts[1:]]
    assert len({len(part.response_ids) for part in uneven}) > 1
    longer = extend(engine_of(), uneven, budget=18, generation=GREEDY, seed=0, stop_ids=(2,))
    assert len(longer[0].response_ids) <= 3 + 18
    assert max(len(part.response_ids) for part in longer) == 24
    assert extend(engine_of(), longer, budget=18, generation=GREEDY, seed=0, stop_ids=(2,))[1:] == longer[1:]


def test_responses_with_different_room_have_different_luck() -> None:
    """Each is the first request of a call of its own, and yet they do not share their random numbers."""
    start = Rollout("p", (1, 5, 9), (), (), "length", ())
    sampling = Generation(temperature=1.0, max_new_tokens=24)
    free, cut = (
        extend(engine_of(), [start], budget=budget, generation=sampling, seed=3, stop_ids=())[0] for budget in (24, 23)
    )
    assert free.response_ids[:23] != cut.response_ids


def test_the_loss_sees_tokens_by_their_age() -> None:
    rollout = Rollout("p", (1,), (5, 6, 7, 8, 9, 10), (0.0,) * 6, "length", (3, 3, 4, 4, 5, 5))
    assert fresh_tokens(rollout, version=5, max_stale=0) == [False] * 4 + [True] * 2
    assert fresh_tokens(rollout, version=5, max_stale=1) == [False] * 2 + [True] * 4
    assert fresh_tokens(rollout, version=5, max_stale=2) == [True] * 6


def test_what_goes_in_circles_is_not_continued() -> None:
    circle = tuple(range(20)) * 8
    assert repeats(circle) and not repeats(circle[:-1])
    assert not repeats(circle + tuple(range(100, 1123)))  # long ago
    assert repeats((7,) * 27) and not repeats((7,) * 26)  # 20 tokens at 8 places
    stuck = Rollout("p", (1,), circle, (0.0,) * 160, "length", (0,) * 160)
    assert not can_go_on(stuck, 1000)
    assert can_go_on(dataclasses.replace(stuck, response_ids=tuple(range(160))), 1000)
    assert not can_go_on(dataclasses.replace(stuck, response_ids=tuple(range(160))), 160)
