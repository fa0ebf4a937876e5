"""Reinforcement learning on verifiable rewards: sample, verify, reward, advantage, loss, step, sync.

One loop for every method; what differs between them is the recipe (posttrain.loops.recipe). Sampling and training take
turns, so that with one optimizer step per batch the samples are exactly on-policy; unless `asynchrony` lets a thread
sample for later steps meanwhile, which is behind posttrain.loops.rl_stream. There are no callbacks: who wants something
else changes this page.

Prompts whose samples all have the same reward teach nothing and cost no forward pass; they stay in the denominators, as
dropping them would make the step larger the fewer prompts teach something.

With several ranks all sample, verify and train their share of the responses, and all know the whole batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from posttrain import config
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.engine.trainer import StepStats
from posttrain.loops.best import Looks
from posttrain.loops.clock import Clock
from posttrain.loops.ending import refuse_other_end
from posttrain.loops.recipe import choose_recipe
from posttrain.loops.rl_ahead import make_stream
from posttrain.loops.rl_batch import Batch, Collector
from posttrain.loops.rl_evidence import Evidence
from posttrain.loops.rl_state import Learner
from posttrain.loops.rl_step import (
    Counts,
    Trajectory,
    make_loss,
    make_micro_batches,
    mean,
    step_metrics,
    token_ids,
    within_budget,
)
from posttrain.loops.rl_stream import Asker
from posttrain.loops.rl_value import make_value_loss, value_step_metrics
from posttrain.loops.scoring import shared_score
from posttrain.loops.steps import make_step_scorer
from posttrain.losses.reduce import Denominators
from posttrain.records import Problem
from posttrain.rewards.total import Scorer, make_terms
from posttrain.rl.sampling import PromptSampler
from posttrain.rl.schedules import scheduled_weight

NO_SCORERS: Mapping[str, Scorer] = MappingProxyType({})


def never(looks: Looks) -> bool:
    """All steps are made, whatever the looks say."""
    return False


EDGE = 5
"""Steps at the start and at the end of a run whose means the summary compares."""


def run_rl(
    policy: Policy,
    problems: Sequence[Problem],
    *,
    section: config.Rl,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    measure: Callable[[], dict[str, float]],
    measure_at: Collection[int],
    scorers: Mapping[str, Scorer] = NO_SCORERS,
    enough: Callable[[Looks], bool] = never,
) -> dict[str, Any]:
    """Train `policy` in place; returns the means of all metrics over the first and over the last steps.

    `rollouts` must sample from `policy`'s weights, and does so again when this returns. `measure` looks at the policy
    after each number of steps in `measure_at` (0: before the first); `enough`, asked then but at 0, on all ranks, ends
    the run. Continues from the last checkpoint in `checkpoints` as if never interrupted. `scorers`: terms with a state.
    """
    recipe = choose_recipe(section.objective, group_size=section.group_size)
    score_steps = make_step_scorer(recipe.steps, policy, engine=engine) if recipe.steps else None
    terms = make_terms(section.rewards, scorers=scorers)
    learner = Learner(policy, recipe, section, engine=engine, seed=seed)
    sampler = make_sampler(problems, section, seed=seed)
    history: list[dict[str, float]] = []
    measured: dict[str, dict[str, float]] = {}
    with closing(make_stream(Asker(policy.tokenizer, problems, rollouts, section), sampler, learner, seed)) as stream:
        collector = Collector(policy.tokenizer, learner, score_steps, problems, sampler, stream, section, terms)
        kept: dict[str, Any] = {"learner": learner, "sampler": sampler, "stream": stream}
        if found := latest_checkpoint(checkpoints):
            restore(kept, found[1])
            history, measured = found[1]["history"], found[1]["measured"]
            stream.sync(len(history), look=False)
        elif 0 in measure_at:
            measured["0"] = measure()
            log(as_eval(measured["0"]), 0)
        for step in range(len(history), section.steps):
            clock, done = Clock(), step + 1
            learner.begin(step)
            batch = collector.collect(step, weights_at(step, section), clock)
            stream.launch(step)
            with clock("update"):
                trained = update(learner, batch, section, Evidence(checkpoints, policy.tokenizer), step=step, seed=seed)
            with clock("sync"):
                stream.sync(done, look=done in measure_at or done == section.steps)
            history.append({**batch.metrics, **trained, **learner.adapt(batch.metrics["kl/k1_sequence"])})
            metrics = history[-1] | clock.metrics(tokens=batch.tokens) | {"rollout/restarts": float(rollouts.restarts)}
            if done in measure_at:
                measured[str(done)] = measure()
                metrics |= as_eval(measured[str(done)])
            log(metrics, done)
            if done in measure_at and enough(measured):
                return summary(history) | {"heldout": measured}
            if done % section.save_every == 0 and done < section.steps:
                state = {name: part.state_dict() for name, part in kept.items()}
                save_checkpoint(checkpoints, done, state | {"history": history, "measured": measured})
    refuse_other_end(len(history), section.steps)
    return summary(history) | {"heldout": measured}


def make_sampler(problems: Sequence[Problem], section: config.Rl, *, seed: int) -> PromptSampler:
    """Draws the prompts of each step as the section says."""
    rates = [problem.pass_rate for problem in problems]
    return PromptSampler(section.sampling, rates, curriculum_steps=section.curriculum_steps, seed=seed)


def restore(parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each part the state that was saved under its name."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


def weights_at(step: int, section: config.Rl) -> dict[str, float]:
    """Weights of the reward terms in force at a step."""
    return {
        name: scheduled_weight(term.weight, start=term.start, ramp=term.ramp, step=step)
        for name, term in section.rewards.items()
    }


def as_eval(metrics: Mapping[str, float]) -> dict[str, float]:
    """A look's metrics as they are logged."""
    return {f"eval/{name}": value for name, value in metrics.items()}


def update(
    learner: Learner, batch: Batch, section: config.Rl, evidence: Evidence, *, step: int, seed: int
) -> dict[str, float]:
    """The optimizer steps on one batch, and their metrics; none where nothing teaches."""
    recipe, trajectories = learner.recipe, prepare(learner, batch, section)
    stats: list[StepStats] = []
    check = within_budget(section.mismatch_budget)
    value_stats: list[StepStats] = []
    for epoch in range(section.epochs):
        order = random.Random(f"{seed}:{step}:{epoch}").sample(range(len(batch.samples)), len(batch.samples))
        for part in range(section.minibatches):
            prompts = order[part :: section.minibatches]
            chosen = [trajectory for p in prompts for trajectory in trajectories.get(p, [])]
            if len(chosen) < world_size():
                continue
            own = chosen[rank() :: world_size()]
            micro_batches = make_micro_batches(
                own, tokens=learner.micro_batch_tokens, device=learner.trainer.model.device
            )
            counts = count(batch, prompts, chosen, section)
            if learner.critic and recipe.value:
                value_loss = make_value_loss(counts, clip=recipe.value.clip)
                value_stats.append(evidence.train(learner.critic, micro_batches, value_loss, own))
            if learner.trains_policy(step):
                loss_fn = make_loss(recipe, counts, temperature=section.generation.temperature)
                stats.append(evidence.train(learner.trainer, micro_batches, loss_fn, own, check))
    return step_metrics(stats) | value_step_metrics(value_stats)


def prepare(learner: Learner, batch: Batch, section: config.Rl) -> dict[int, list[Trajectory]]:
    """The trajectories of every group that teaches something.

    Their log-probabilities before the update need a forward pass of their own only when there are several steps.
    """
    recipe, several = learner.recipe, section.epochs * section.minibatches > 1
    # Groups without an advantage still pull: to the reference, to the policy that sampled, or the value network.
    all_teach = recipe.kl_in_loss or recipe.value or (recipe.tau and several)
    taught = [p for p in range(len(batch.samples)) if all_teach or batch.has_signal(p)]
    kept = [(p, g) for p in taught for g in range(len(batch.samples[p])) if batch.seen(p, g)]
    old: list[Tensor | None] = [None] * len(kept)
    if several:
        old[:] = shared_score(
            learner.trainer.model,
            [token_ids(batch.samples[p][g].rollout) for p, g in kept],
            micro_batch_tokens=learner.micro_batch_tokens,
            temperature=section.generation.temperature,
        )
    trajectories: dict[int, list[Trajectory]] = {p: [] for p in taught}
    for (p, g), scores in zip(kept, old, strict=True):
        credit = batch.credits[p][g]
        reference = batch.reference[p, g] if recipe.kl_in_loss else None
        trajectories[p].append(
            Trajectory(
                batch.samples[p][g].rollout,
                credit.advantages_T,
                scores,
                reference,
                credit.values_T,
                credit.returns_T,
                batch.fresh.get((p, g)),
            )
        )
    return trajectories


def count(batch: Batch, prompts: Sequence[int], chosen: Sequence[Trajectory], section: config.Rl) -> Counts:
    """Denominators of one optimizer step: all its prompts count, those that teach nothing too."""
    lengths = [seen for p in prompts for g in range(len(batch.samples[p])) if (seen := batch.seen(p, g))]
    trained = sum(trajectory.tokens for trajectory in chosen)
    return Counts(Denominators(len(lengths), sum(lengths), section.generation.max_new_tokens), trained)


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Number of steps, and means over the first and over the last of everything that was measured in them."""
    report: dict[str, Any] = {"steps": len(history)}
    for name, steps in (("start", history[:EDGE]), ("end", history[-EDGE:])):
        keys = sorted({key for step in steps for key in step})
        report[name] = {key: mean([step[key] for step in steps if key in step]) for key in keys}
    return report
