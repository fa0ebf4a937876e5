"""What each arm of the study trains with: section align of params.yaml, with the study's numbers and the arm's own."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from posttrain.config import ConfigError, Count, Params, Positive, Section, parse_section, read_mapping
from posttrain.config_align import Align, Method

STUDY = Path("studies/preferences/params.yaml")


class Arm(Section):
    lr: Positive
    """Learning rate: the losses differ in what a step of one size does, so that one rate for all would favour some."""
    method: Method


class Study(Section):
    """The whole of studies/preferences/params.yaml."""

    epochs: Positive
    """Over the pairs, of every arm that learns from them."""
    batch_pairs: Count
    problems: Count
    """Held-out ones, the first, that every arm is asked at its end."""
    samples: Count
    """Answers to each."""
    bootstrap: Count
    arms: dict[str, Arm]
    """By the method's kind."""

    @model_validator(mode="after")
    def arms_are_named_by_their_method(self) -> Study:
        for name, arm in self.arms.items():
            if arm.method.kind != name:
                raise ConfigError(f"arms.{name}.method.kind: got '{arm.method.kind}', wanted '{name}'")
        return self


def load_study(path: Path = STUDY) -> Study:
    """The validated study; raises ConfigError with every wrong field named."""
    return parse_section(Study, read_mapping(path), str(path))


def arm_section(name: str, params: Params, study: Study) -> Align:
    """Section align of one arm, one round; raises ConfigError naming the field that does not fit."""
    if name not in study.arms:
        raise ConfigError(f"{STUDY}: arms: got no '{name}', wanted one of {', '.join(study.arms)}")
    arm, chain = study.arms[name].model_dump(mode="json"), params.align.model_dump(mode="json")
    changes = {
        "method": arm["method"],
        "rounds": 1,
        "epochs": study.epochs,
        "batch_pairs": study.batch_pairs,
        "optimizer": chain["optimizer"] | {"lr": arm["lr"]},
    }
    return parse_section(Align, chain | changes, f"params.yaml + {STUDY}: arm {name}: align")
