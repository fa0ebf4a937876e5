"""Rejection-sampling fine-tuning: the baseline that every RL claim is measured against (arXiv 2308.01825).

Sample from the policy as it is, keep what is right, and train on that as if it had been written by hand. In the unified
view of DeepSeekMath (arXiv 2402.03300, section 5.2.1) its gradient coefficient is 1 for a right response and 0 for a
wrong one, whatever the rest of its group: nothing is pushed down, a prompt that is always solved is pushed as hard as
any, and the samples stay those of the first policy. The loss is that of stage sft, a mean over tokens.

What was sampled is trained on as the ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.errors import StageError
from posttrain.loops.sample import Sample, sample_problems
from posttrain.loops.select import distinct, is_right
from posttrain.loops.sft import Example, run_sft
from posttrain.records import Problem


def run_rft(
    policy: Policy,
    problems: Sequence[Problem],
    *,
    samples: int,
    max_per_problem: int,
    epochs: float,
    batch_tokens: int,
    sequence_length: int,
    optimizer: config.Optimizer,
    generation: config.Generation,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    save_every: int,
) -> dict[str, Any]:
    """Train `policy` in place on its own right answers; returns what was kept at each filter, and run_sft's summary.

    `rollouts` must sample from `policy`; it is in step with it again when this returns. Continues from the last
    checkpoint, with the result of a run that was never interrupted. Raises StageError when nothing is right.
    """

    groups = sample_problems(
        rollouts, policy.tokenizer, problems, mode="think", samples=samples, generation=generation, seed=seed
    )
    kept, counts = keep_right(groups, max_per_problem=max_per_problem)
    summary = run_sft(
        policy,
        [trained_on(sample) for sample in kept],
        optimizer=optimizer,
        epochs=epochs,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
        save_every=save_every,
    )
    rollouts.load_weights(policy.model, version=1)
    return {**counts, **summary}


def keep_right(groups: Sequence[Sequence[Sample]], *, max_per_problem: int) -> tuple[list[Sample], dict[str, int]]:
    """The right samples, one of each way to reason, at most `max_per_problem` per prompt; and how many were left."""
    right = [[sample for sample in group if is_right(sample)] for group in groups]
    ways = [distinct(group) for group in right]
    kept = [sample for group in ways for sample in group[:max_per_problem]]
    if not kept:
        raise StageError(f"rft: none of {sum(map(len, groups))} samples is right and well-formed, wanted at least one")
    return kept, {
        "prompts": len(groups),
        "sampled": sum(map(len, groups)),
        "right": sum(map(len, right)),
        "distinct": sum(map(len, ways)),
        "kept": len(kept),
        "prompts_with_kept": sum(map(bool, ways)),
    }


def trained_on(sample: Sample) -> Example:
    """Prompt and response in ids; the loss is on the response."""
    prompt, response = sample.rollout.prompt_ids, sample.rollout.response_ids
    return [*prompt, *response], [0] * len(prompt) + [1] * len(response)
