"""Where the rewards of reasoning steps come from, as `objective.credit.steps` says.

A scorer splits each response into steps and says for each what it is worth and at which token it ends. It is made once
per run, before anything is trained, from the policy that starts it (its tokenizer, its device).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from posttrain.config import Engine
from posttrain.config_fields import ConfigError
from posttrain.config_rl import CheckedSteps, ModelledSteps, StepSource
from posttrain.engine.policy import Policy
from posttrain.engine.scalar_head import load_reward_model
from posttrain.errors import ModelError, StageError
from posttrain.loops.process_reward import StepScorer, checker_scorer, prm_scorer
from posttrain.loops.sample import Sample
from posttrain.rl.process import StepReward


def make_step_scorer(source: StepSource, policy: Policy, *, engine: Engine) -> StepScorer:
    """The scorer of a section, its results checked; raises ConfigError for a folder with no process reward model."""
    scorer = choose_step_scorer(source, policy, engine=engine)

    def checked(samples: Sequence[Sample]) -> list[list[StepReward]]:
        steps = scorer(samples)
        refuse_bad_steps(samples, steps, source.kind)
        return steps

    return checked


def choose_step_scorer(source: StepSource, policy: Policy, *, engine: Engine) -> StepScorer:
    """The exact checker, or the model of a folder."""
    match source:
        case CheckedSteps():
            return checker_scorer(policy.tokenizer)
        case ModelledSteps():
            return saved_prm_scorer(Path(source.path), policy, engine=engine)


def saved_prm_scorer(folder: Path, policy: Policy, *, engine: Engine) -> StepScorer:
    """The process reward model of a folder, on the policy's device: the trainer chooses it, after scorers are made."""
    try:
        model = load_reward_model(folder, policy.tokenizer, precision=engine.precision)
    except ModelError as error:
        raise ConfigError(
            f"objective.credit.steps.path: {error}; wanted: a process reward model, as studies.process saves them"
        ) from error
    score = prm_scorer(model, policy.tokenizer, micro_batch_tokens=engine.micro_batch_tokens)

    def scored(samples: Sequence[Sample]) -> list[list[StepReward]]:
        model.to(policy.model.device)
        return score(samples)

    return scored


def refuse_bad_steps(samples: Sequence[Sample], steps: Sequence[Sequence[StepReward]], name: str) -> None:
    """Raise StageError naming scorer and problem: steps must end within their response and have finite rewards."""
    if len(steps) != len(samples):
        raise StageError(f"step scorer '{name}': got steps of {len(steps)} responses, wanted of {len(samples)}")
    for sample, of_sample in zip(samples, steps, strict=True):
        where = f"step scorer '{name}', problem {sample.problem.id}"
        for number, step in enumerate(of_sample):
            if not 0 <= step.end < sample.tokens:
                raise StageError(f"{where}: step {number} ends at {step.end}, wanted 0 to {sample.tokens - 1}")
            if not math.isfinite(step.reward):
                raise StageError(f"{where}: step {number} has reward {step.reward}, wanted a finite number")
