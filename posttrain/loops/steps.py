"""Where the rewards of reasoning steps come from: whoever scores steps has an entry here.

A scorer splits each response into steps and says for each what it is worth and at which token it ends. It is made once
per run from the policy that starts it (its tokenizer, its device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from posttrain.config_fields import ConfigError
from posttrain.engine.policy import Policy
from posttrain.errors import StageError
from posttrain.loops.process_reward import StepScorer, checker_scorer
from posttrain.loops.sample import Sample
from posttrain.rl.process import StepReward

SCORERS: dict[str, Callable[[Policy], StepScorer]] = {"checker": lambda policy: checker_scorer(policy.tokenizer)}


def make_step_scorer(name: str, policy: Policy) -> StepScorer:
    """The scorer of that name, its results checked; raises ConfigError where there is none."""
    if name not in SCORERS:
        known = ", ".join(SCORERS) or "none at all"
        raise ConfigError(f"objective.credit.steps: got '{name}'; step scorers here: {known}")
    scorer = SCORERS[name](policy)

    def checked(samples: Sequence[Sample]) -> list[list[StepReward]]:
        steps = scorer(samples)
        refuse_bad_steps(samples, steps, name)
        return steps

    return checked


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
