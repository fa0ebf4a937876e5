"""Reinforcement learning on verifiable rewards: sample, verify, reward, advantage, loss, step, sync.

One loop for every method; what differs between them is the recipe (posttrain.loops.recipe). Sampling and training take
turns, so that with one optimizer step per batch the samples are exactly on-policy. There are no callbacks: who wants
something else changes this page.

Prompts whose samples all have the same reward teach nothing and cost no forward pass; they stay in the denominators, as
dropping them would make the step larger the fewer prompts teach something.

With several ranks the first samples and verifies, all train their share of the responses.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.engine.trainer import StepStats, Trainer
from posttrain.loops.clock import Clock
from posttrain.loops.recipe import Recipe, choose_recipe
from posttrain.loops.rl_batch import Batch, Collector, mean
from posttrain.loops.rl_step import Counts, Trajectory, from_first_rank, make_loss, make_micro_batches, token_ids
from posttrain.loops.scoring import score
from posttrain.losses.reduce import Denominators
from posttrain.records import Problem
from posttrain.rewards.total import Scorer, make_terms
from posttrain.rl.sampling import PromptSampler
from posttrain.rl.schedules import scheduled_weight

NO_SCORERS: Mapping[str, Scorer] = MappingProxyType({})

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
) -> dict[str, Any]:
    """Train `policy` in place; returns the means of all metrics over the first and over the last steps.

    `rollouts` must sample from `policy`'s weights, and does so again when this returns. `measure` looks at the policy
    after each number of steps in `measure_at` (0: before the first). Continues from the last checkpoint in
    `checkpoints`, with the result of a run that was never interrupted. `scorers`: reward terms with a state, by name.
    """
    recipe = choose_recipe(section.objective, group_size=section.group_size)
    terms = make_terms(section.rewards, scorers=scorers)
    reference = frozen_copy(policy.model)
    updates = section.steps * section.epochs * section.minibatches
    trainer = Trainer(policy.model, optimizer=section.optimizer, total_steps=updates, engine=engine, seed=seed)
    rates = [problem.pass_rate for problem in problems]
    sampler = PromptSampler(section.sampling, rates, curriculum_steps=section.curriculum_steps, seed=seed)
    collector = Collector(policy.tokenizer, reference, problems, sampler, rollouts, recipe, section, terms)
    history: list[dict[str, float]] = []
    measured: dict[str, dict[str, float]] = {}
    if found := latest_checkpoint(checkpoints):
        _, state = found
        trainer.load_state_dict(state["trainer"])
        sampler.load_state_dict(state["sampler"])
        history, measured = state["history"], state["measured"]
        sync(trainer, rollouts, version=len(history))
    elif 0 in measure_at:
        measured["0"] = from_first_rank(measure)
        log(_as_eval(measured["0"]), 0)
    for step in range(len(history), section.steps):
        clock = Clock()
        weights = {
            name: scheduled_weight(term.weight, start=term.start, ramp=term.ramp, step=step)
            for name, term in section.rewards.items()
        }
        batch = from_first_rank(partial(collector.collect, step, weights, f"{seed}:{step}", clock))
        with clock("update"):
            trained = update(trainer, batch, recipe, section, seed=f"{seed}:{step}")
        with clock("sync"):
            sync(trainer, rollouts, version=step + 1)
        metrics = batch.metrics | trained | clock.metrics(tokens=batch.tokens)
        history.append(batch.metrics | trained)
        if step + 1 in measure_at:
            measured[str(step + 1)] = from_first_rank(measure)
            metrics |= _as_eval(measured[str(step + 1)])
        log(metrics, step + 1)
        if (step + 1) % section.save_every == 0 and step + 1 < section.steps:
            state = {"trainer": trainer.state_dict(), "sampler": sampler.state_dict()}
            save_checkpoint(checkpoints, step + 1, state | {"history": history, "measured": measured})
    return summary(history) | {"heldout": measured}


def _as_eval(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in metrics.items()}


def update(trainer: Trainer, batch: Batch, recipe: Recipe, section: config.Rl, *, seed: str) -> dict[str, float]:
    """The optimizer steps on one batch, and their metrics; none where nothing teaches."""
    trajectories = prepare(trainer, batch, recipe, section)
    stats: list[StepStats] = []
    for epoch in range(section.epochs):
        order = random.Random(f"{seed}:{epoch}").sample(range(len(batch.samples)), len(batch.samples))
        for part in range(section.minibatches):
            prompts = order[part :: section.minibatches]
            chosen = [trajectory for p in prompts for trajectory in trajectories.get(p, [])]
            if len(chosen) < world_size():
                continue
            own = chosen[rank() :: world_size()]
            micro_batches = make_micro_batches(own, tokens=section.micro_batch_tokens, device=trainer.model.device)
            counts = count(batch, prompts, chosen, section)
            loss_fn = make_loss(recipe, counts, temperature=section.generation.temperature)
            stats.append(trainer.step(micro_batches, loss_fn))
    return step_metrics(stats)


def prepare(trainer: Trainer, batch: Batch, recipe: Recipe, section: config.Rl) -> dict[int, list[Trajectory]]:
    """The trajectories of every group that teaches something.

    Their log-probabilities before the update need a forward pass of their own only when there are several steps.
    """
    taught = [p for p in range(len(batch.samples)) if batch.has_signal(p) or recipe.kl_in_loss]
    old: list[Tensor | None] = [None] * sum(len(batch.samples[p]) for p in taught)
    if section.epochs * section.minibatches > 1:
        old[:] = score(
            trainer.model,
            [token_ids(sample.rollout) for p in taught for sample in batch.samples[p]],
            micro_batch_tokens=section.micro_batch_tokens,
            temperature=section.generation.temperature,
        )
    scores = iter(old)
    return {
        p: [
            Trajectory(
                rollout=sample.rollout,
                advantage=float(batch.advantages_PG[p, g]),
                old=next(scores),
                reference=batch.reference[p, g] if recipe.kl_in_loss else None,
            )
            for g, sample in enumerate(batch.samples[p])
        ]
        for p in taught
    }


def count(batch: Batch, prompts: Sequence[int], chosen: Sequence[Trajectory], section: config.Rl) -> Counts:
    """Denominators of one optimizer step: all its prompts count, those that teach nothing too."""
    rollouts = [sample.rollout for p in prompts for sample in batch.samples[p]]
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    trained = sum(len(trajectory.rollout.response_ids) for trajectory in chosen)
    return Counts(Denominators(len(rollouts), tokens, section.generation.max_new_tokens), trained)


def sync(trainer: Trainer, rollouts: RolloutEngine, *, version: int) -> None:
    """Let the sampler use the weights just trained; it proves that it does, or stops the run."""
    if rank() == 0:
        rollouts.load_weights(trainer.model, version)


def step_metrics(stats: Sequence[StepStats]) -> dict[str, float]:
    """Means over the optimizer steps of a batch."""
    if not stats:
        return {}
    metrics = {name: mean([step.metrics[name] for step in stats]) for name in stats[0].metrics}
    return metrics | {
        "train/loss": mean([step.loss for step in stats]),
        "train/grad_norm": mean([step.grad_norm for step in stats]),
        "train/learning_rate": stats[-1].lr,
    }


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The policy as it is now, never to change: the reference."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Number of steps, and means over the first and over the last of everything that was measured in them."""
    report: dict[str, Any] = {"steps": len(history)}
    for name, steps in (("start", history[:EDGE]), ("end", history[-EDGE:])):
        keys = sorted({key for step in steps for key in step})
        report[name] = {key: mean([step[key] for step in steps if key in step]) for key in keys}
    return report
