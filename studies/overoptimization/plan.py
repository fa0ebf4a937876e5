"""What the study runs with: its own params.yaml, and sections of the chain's that it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain.config import (
    ConfigError,
    Count,
    Positive,
    RewardModel,
    Rl,
    Section,
    parse_section,
    read_mapping,
)

STUDY = Path("studies/overoptimization/params.yaml")

ARMS = ("proxy", "proxy_kl", "gold")
"""RL on the proxy, on the proxy with a KL penalty, and on the gold score: the control, a reward without noise."""


class Labels(Section):
    """Preference pairs, ordered by the world's judge, some of them the wrong way round."""

    problems: Annotated[int, Field(ge=4)]
    samples: Annotated[int, Field(ge=2)]
    per_problem: Count
    """Pairs of each prompt, at most."""
    flip_rate: Annotated[float, Field(ge=0.0, lt=0.5)]
    heldout_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of each half's prompts on which its proxy is measured."""


class Proxies(Section):
    epochs: Positive
    lr: Positive


class BestOfN(Section):
    problems: Annotated[int, Field(ge=2)]
    """Held-out ones."""
    samples: Count
    """The pool of each, from which every n is estimated."""
    at: Annotated[tuple[Count, ...], Field(min_length=2)]
    """n, rising from 1."""

    @model_validator(mode="after")
    def sizes_rise_from_one(self) -> BestOfN:
        if self.at[0] != 1 or list(self.at) != sorted(set(self.at)) or self.at[-1] > self.samples:
            raise ConfigError(f"at: got {list(self.at)}, wanted n that rise from 1 to at most samples = {self.samples}")
        return self


class Reinforced(Section):
    steps: Count
    prompts_per_step: Count
    group_size: Annotated[int, Field(ge=2)]
    lr: Positive
    """Constant, after the warm-up of section grpo."""
    kl: Positive
    """Coefficient of arm proxy_kl, k1 in the reward."""
    look_every: Count
    look_problems: Annotated[int, Field(ge=2)]
    """Held-out ones, and as many of those the policy is trained on."""
    look_samples: Count


class Study(Section):
    """The whole of studies/overoptimization/params.yaml."""

    labels: Labels
    proxies: Proxies
    best_of_n: BestOfN
    rl: Reinforced
    bootstrap: Count


def load_study(path: Path = STUDY) -> Study:
    """The validated study; raises ConfigError with every wrong field named."""
    return parse_section(Study, read_mapping(path), str(path))


def proxy_section(chain: RewardModel, proxies: Proxies) -> RewardModel:
    """Stage reward_model's section with the study's numbers."""
    optimizer = chain.optimizer.model_copy(update={"lr": proxies.lr})
    return chain.model_copy(update={"epochs": proxies.epochs, "optimizer": optimizer})


def arm_section(arm: str, grpo: Rl, rl: Reinforced, *, reward: str, unit: float) -> Rl:
    """Stage grpo's section for one of ARMS: its reward alone, in units of `unit`, and a KL penalty only in proxy_kl.

    Raises ConfigError where the objective of the profile cannot have one.
    """
    chain = grpo.model_dump(mode="json")
    penalty: Any = {"kind": "in_reward", "estimator": "k1", "coefficient": rl.kl, "controller": "fixed"}
    changes = {
        "method": "rl",
        "objective": chain["objective"] | {"kl": penalty | {"reset_reference": 0} if arm == "proxy_kl" else "none"},
        "rewards": {reward: {"weight": 1.0 / unit, "start": 0, "ramp": 0}},
        "sampling": "uniform",
        "curriculum_steps": 0,
        "steps": rl.steps,
        "prompts_per_step": rl.prompts_per_step,
        "group_size": rl.group_size,
        "optimizer": chain["optimizer"] | {"lr": rl.lr, "schedule": "constant"},
        "save_every": rl.steps,  # an arm that was interrupted starts again: its looks are kept in memory
    }
    return parse_section(Rl, chain | changes, f"params.yaml + {STUDY}: arm {arm}")
