"""Training a policy on verifiable rewards, as stage grpo and the study of objectives do it.

By the method of the section; with looks at the held-out problems before the first step, where the length reward
starts, every `eval_every` steps and after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.loops.heldout import look_at_heldout
from posttrain.loops.rl import run_rl
from posttrain.records import Problem


def train_policy(
    policy: Policy,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    section: config.Rl,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
) -> dict[str, Any]:
    """Train `policy` in place and return the report of it: means at the start and at the end, looks by step.

    `rollouts` must sample from `policy`'s weights, and does so again when this returns. `log` gets (metrics, step), the
    seconds of each step as `time/step`. Continues from the last checkpoint in `checkpoints`.
    """
    start = section.rewards["length"].start if "length" in section.rewards else 0
    look = partial(
        look_at_heldout,
        rollouts,
        policy.tokenizer,
        heldout,
        mode="think",
        samples=section.eval_samples,
        generation=section.generation,
        seed=seed,
    )
    summary = run_rl(
        policy,
        problems,
        section=section,
        rollouts=rollouts,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
        measure=look,
        measure_at={0, start, section.steps} | set(range(section.eval_every, section.steps, section.eval_every)),
    )
    return {"length_reward_start": start, **summary}
