"""What each arm of the study trains with.

One over the other: params.yaml, `grpo` of the study's params.yaml, the objective, the arm's learning rate. What an arm
may sample (steps, prompts, group, tokens) is the same for all; an objective that states another number is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config import (
    ConfigError,
    Count,
    Params,
    Positive,
    Rl,
    Section,
    parse_params,
    parse_section,
    read_mapping,
)
from posttrain.profiles import merge

STUDY = Path("studies/objectives/params.yaml")
BUDGET = ("steps", "prompts_per_step", "group_size", "generation")
"""Keys of section grpo that no objective may change."""


class Arm(Section):
    lr: Positive
    """Learning rate: the gradients of the objectives differ in size, so that one rate for all would favour some."""


class Study(Section):
    """The whole of studies/objectives/params.yaml."""

    grpo: dict[str, Any]
    """Lies over section grpo of params.yaml, in every arm."""
    watched: Count
    """Held-out problems, one answer to each, from which the final KL and entropy are computed."""
    arms: dict[str, Arm]
    """One for each file of objectives/."""


def load_study(path: Path = STUDY) -> Study:
    """The validated study; raises ConfigError with every wrong field named."""
    return parse_section(Study, read_mapping(path), str(path))


def arm_section(name: str, params: Params, study: Study, *, root: Path = Path()) -> Rl:
    """Section grpo of one arm; raises ConfigError naming the files and the field that does not fit."""
    if name not in study.arms:
        raise ConfigError(f"{STUDY}: arms: got no '{name}', wanted one of {', '.join(study.arms)}")
    objective = Path("objectives") / f"{name}.yaml"
    equal = merge(params.model_dump(mode="json"), {"grpo": study.grpo})
    own = merge(equal, read_mapping(root / objective))
    for key in BUDGET:
        if own["grpo"].get(key) != equal["grpo"].get(key):
            raise ConfigError(
                f"{objective}: grpo.{key}: got {own['grpo'][key]}, wanted {equal['grpo'].get(key)}: all arms have the "
                "same budget"
            )
    rate = {"grpo": {"optimizer": {"lr": study.arms[name].lr}}}
    return parse_params(merge(own, rate), f"params.yaml + {STUDY} + {objective}").grpo
