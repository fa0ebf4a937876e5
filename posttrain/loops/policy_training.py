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
from posttrain.loops.rft import run_rft
from posttrain.loops.rl import as_eval, run_rl
from posttrain.records import Problem

Log = Callable[[dict[str, float], int], None]
Look = Callable[[], dict[str, float]]


def train_policy(
    policy: Policy,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    section: config.Rl,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Log,
    checkpoints: Path,
) -> dict[str, Any]:
    """Train `policy` in place and return the report of it: means at the start and at the end, looks by step.

    `rollouts` must sample from `policy`'s weights, and does so again when this returns. `log` gets (metrics, step), the
    seconds of a step as `time/step`; a look of its own comes without them. Continues from the last checkpoint in
    `checkpoints`.
    """
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
    train = _METHODS[section.method]
    return train(policy, problems, section, look, rollouts=rollouts, engine=engine, seed=seed, log=log, at=checkpoints)


def _by_rl(
    policy: Policy,
    problems: Sequence[Problem],
    section: config.Rl,
    look: Look,
    *,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Log,
    at: Path,
) -> dict[str, Any]:
    start = section.rewards["length"].start if "length" in section.rewards else None
    summary = run_rl(
        policy,
        problems,
        section=section,
        rollouts=rollouts,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=at,
        measure=look,
        measure_at={0, start or 0, section.steps} | set(range(section.eval_every, section.steps, section.eval_every)),
    )
    return {"length_reward_start": start, **summary}


def _by_rft(
    policy: Policy,
    problems: Sequence[Problem],
    section: config.Rl,
    look: Look,
    *,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Log,
    at: Path,
) -> dict[str, Any]:
    """With as many samples as RL would draw in its steps, spread evenly over the problems: to the nearest whole one.

    Steps are those of the fine-tuning, with one look before the first and one after the last.
    """
    before = look()
    log(as_eval(before), 0)
    summary = run_rft(
        policy,
        problems,
        samples=max(1, round(section.steps * section.prompts_per_step * section.group_size / len(problems))),
        max_per_problem=section.rft.max_per_problem,
        epochs=section.rft.epochs,
        batch_tokens=section.rft.batch_tokens,
        sequence_length=section.rft.sequence_length,
        optimizer=section.optimizer,
        generation=section.generation,
        rollouts=rollouts,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=at,
        save_every=section.save_every,
    )
    after = look()
    log(as_eval(after), summary["steps"])
    return {**summary, "heldout": {"0": before, str(summary["steps"]): after}}


_METHODS = {"rl": _by_rl, "rft": _by_rft}
