"""Preference learning in rounds: train on pairs, let the policy just trained write the next pairs, train again.

Pairs of an older policy say little about what the policy does now; fresh ones show it its own mistakes (iterative DPO:
arXiv 2312.16682; self-rewarding models, arXiv 2401.10020, section 2.4). Each round's reference is the policy at its
start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.policy import Policy
from posttrain.records import Pair

Summary = dict[str, float]


def run_rounds(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    rounds: int,
    fresh: Callable[[int], Sequence[Pair]],
    train: Callable[[Sequence[Pair], int, int], Summary],
    checkpoints: Path,
) -> list[Summary]:
    """Train `policy` in place: round 0 on `pairs`, round r on `fresh(r)`, which samples from the policy as it then is.

    `train(pairs, round, steps done before)` returns its summary with `steps`. Continues after the last whole round,
    with the result of a run that was never interrupted, provided that `fresh` depends on policy and round alone.
    """
    summaries: list[Summary] = []
    if found := latest_checkpoint(checkpoints):
        policy.model.load_state_dict(found[1]["model"])
        summaries = found[1]["summaries"]
    for number in range(len(summaries), rounds):
        given = pairs if number == 0 else fresh(number)
        summaries.append(train(given, number, int(sum(summary["steps"] for summary in summaries))))
        if number + 1 < rounds:
            save_checkpoint(checkpoints, number + 1, {"model": policy.model.state_dict(), "summaries": summaries})
    return summaries
