"""Partial rollouts: long responses sampled in segments, each under the weights of its iteration.

A fixed budget of tokens per iteration bounds its time; what is unfinished goes on in the next one, after what it has
said so far, under newer weights (Kimi k1.5, arXiv 2501.12599, section 2.6.2). Tokens keep the version that sampled
them, so that a loss can leave out those that are too old.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from posttrain.config import Generation
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.records import Rollout

NGRAM, TIMES, WINDOW = 20, 8, 1024
"""Of a response that goes in circles: one n-gram this often among its last tokens. Kimi k1.5 publishes no rule."""


def extend(
    engine: RolloutEngine,
    rollouts: Sequence[Rollout],
    *,
    budget: int,
    generation: Generation,
    seed: int,
    stop_ids: Sequence[int] | None = None,
) -> list[Rollout]:
    """The rollouts in their order, those that can go on longer by at most `budget` tokens of the engine's weights.

    `generation.max_new_tokens` limits the whole response. What has stopped, is that long or goes in circles stays as it
    is. A prompt not begun is a rollout without tokens and with finish `length`.
    """
    limit = generation.max_new_tokens
    done = list(rollouts)
    # Requests of one call share a budget: those with little room left are asked for by themselves.
    rooms = {i: min(budget, limit - len(r.response_ids)) for i, r in enumerate(rollouts) if can_go_on(r, limit)}
    for room in sorted(set(rooms.values())):
        waiting = [i for i, its in rooms.items() if its == room]
        segments = engine.generate(
            [Request(rollouts[i].problem_id, rollouts[i].prompt_ids + rollouts[i].response_ids) for i in waiting],
            samples=1,
            generation=generation.model_copy(update={"max_new_tokens": room}),
            # One number per call: calls number their requests alike.
            seed=random.Random(f"{seed}:{room}").getrandbits(31),
            stop_ids=stop_ids,
        )
        for i, segment in zip(waiting, segments, strict=True):
            done[i] = joined(rollouts[i], segment)
    return done


def can_go_on(rollout: Rollout, limit: int) -> bool:
    """Whether it is neither ended, nor `limit` tokens long, nor going in circles."""
    return rollout.finish == "length" and len(rollout.response_ids) < limit and not repeats(rollout.response_ids)


def joined(first: Rollout, then: Rollout) -> Rollout:
    """One response of two segments; `then` was sampled after `first`."""
    return dataclasses.replace(
        first,
        response_ids=first.response_ids + then.response_ids,
        logprobs=first.logprobs + then.logprobs,
        finish=then.finish,
        version_per_token=first.version_per_token + then.version_per_token,
    )


def fresh_tokens(rollout: Rollout, *, version: int, max_stale: int) -> list[bool]:
    """Which tokens were sampled at most `max_stale` versions before `version`: those that the loss may see."""
    return [sampled >= version - max_stale for sampled in rollout.version_per_token]


def repeats(ids: Sequence[int], *, ngram: int = NGRAM, times: int = TIMES, window: int = WINDOW) -> bool:
    """Whether some `ngram` tokens in a row occur at least `times` times, overlaps included, in the last `window`."""
    last = tuple(ids[-window:])
    counts = Counter(last[i : i + ngram] for i in range(len(last) - ngram + 1))
    return max(counts.values(), default=0) >= times
