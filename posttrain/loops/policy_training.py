"""Training a policy on verifiable rewards, as stage grpo and the study of objectives do it.

By the method of the section; with looks at the held-out problems before the first step, where the length reward
starts, every `eval_every` steps and after the last. The weights kept are the last ones or, if the section says so,
those of the look with the highest accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.engine.policy import Policy, frozen_copy
from posttrain.engine.rollout import RolloutEngine
from posttrain.loops.best import BestWeights, Looks, last_step
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
    """Train `policy` in place and return the report of it: means at the start and at the end, looks by step, and with
    `keep: best` under `kept_weights` the step whose weights are kept, with its accuracy and the last look's.

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
    best = BestWeights(policy, "accuracy", checkpoints / "best") if section.keep == "best" else None
    start = frozen_copy(policy.model) if best else None
    train = _METHODS[section.method]
    report = train(
        policy, problems, section, look, best, rollouts=rollouts, engine=engine, seed=seed, log=log, at=checkpoints
    )
    if best is None or start is None:
        return report
    looks = report["heldout"]
    kept, last = best.restore(looks, start), last_step(looks)
    if kept != last:
        rollouts.load_weights(policy.model, last + 1)
    numbers = {"accuracy": looks[str(kept)]["accuracy"], "accuracy_last": looks[str(last)]["accuracy"]}
    return report | {"kept_weights": {"step": kept, **numbers}}


def _by_rl(
    policy: Policy,
    problems: Sequence[Problem],
    section: config.Rl,
    look: Look,
    best: BestWeights | None,
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
        enough=_never_enough(best),
        measure_at={0, start or 0, section.steps} | set(range(section.eval_every, section.steps, section.eval_every)),
    )
    return {"length_reward_start": start, **summary}


def _by_rft(
    policy: Policy,
    problems: Sequence[Problem],
    section: config.Rl,
    look: Look,
    best: BestWeights | None,
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
    looks = {"0": before, str(summary["steps"]): after}
    if best:
        best.see(looks)
    return {**summary, "heldout": looks}


def _never_enough(best: BestWeights | None) -> Callable[[Looks], bool]:
    """Keeps the best weights at each look, and never ends the run."""

    def see(looks: Looks) -> bool:
        if best:
            best.see(looks)
        return False

    return see


_METHODS = {"rl": _by_rl, "rft": _by_rft}
