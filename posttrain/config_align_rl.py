"""Methods `ppo` and `grpo_rm` of section `align`: reinforcement learning on a reward model's score.

What stands here is what a learned reward needs; prompts per step, group size, token limit, temperature, asynchrony and
mismatch budget are those of section `grpo`, the optimizer is the section's own. posttrain.loops.align_rl puts the three
together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config_fields import ConfigError, Count, Section
from posttrain.config_rewards import Schedule, refuse_wrong_positives
from posttrain.config_rl import Objective, ValueBaseline, refuse_contradictions

LEARNED = "learned"
"""The reward term that is the reward model's score."""


class EarlyStop(Section):
    """Training ends, and the weights of the best look are kept, once a score that is not trained on has turned down."""

    signal: Literal["none", "gold", "second_proxy"]
    """`gold`: the world's judge; `second_proxy`: another reward model, where there is no gold; `none`: all steps."""
    checks: Count
    """Looks in a row below the best one that count as a turn."""


class LearnedRl(Section):
    kind: Literal["ppo", "grpo_rm"]
    objective: Objective
    """With a value network for ppo, without one for grpo_rm."""
    steps: Count
    epochs: Count
    """Passes over each batch of rollouts."""
    minibatches: Count
    """Optimizer steps per pass."""
    rewards: dict[str, Schedule]
    """Terms and their weights, `learned` among them; unless the advantages are divided by it, they have its scale."""
    look_every: Count
    """Steps between looks at the held-out problems; besides one before the first step and one after the last."""
    look_problems: Annotated[int, Field(ge=2)]
    look_samples: Count
    stop: EarlyStop
    second_reward_model: Annotated[str, Field(min_length=1)] | None
    """Folder of a reward model that no policy is trained on, best made from other pairs; null: none."""

    @model_validator(mode="after")
    def choices_agree(self) -> LearnedRl:
        baseline = self.objective.baseline
        if LEARNED not in self.rewards or self.rewards[LEARNED].weight <= 0:
            raise ConfigError(f"rewards: got {sorted(self.rewards)}, wanted '{LEARNED}' with a weight above 0")
        refuse_wrong_positives(self.rewards, surrogate=self.objective.surrogate.kind, baseline=baseline.kind)
        if self.stop.signal == "second_proxy" and self.second_reward_model is None:
            raise ConfigError("second_reward_model: got null, wanted a folder, as stop.signal is 'second_proxy'")
        if isinstance(baseline, ValueBaseline) != (self.kind == "ppo"):
            wanted = "'value'" if self.kind == "ppo" else "one without a value network"
            raise ConfigError(f"objective.baseline: got '{baseline.kind}' with kind '{self.kind}', wanted {wanted}")
        if isinstance(baseline, ValueBaseline) and baseline.warmup_steps >= self.steps:
            raise ConfigError(
                f"objective.baseline.warmup_steps: got {baseline.warmup_steps}, wanted fewer than steps = {self.steps}"
            )
        refuse_contradictions(self.objective, group_size=2)  # the size itself is section grpo's
        return self
