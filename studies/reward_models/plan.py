"""The numbers of the study: params.yaml beside this file, as strict as the chain's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config import ConfigError, Count, RewardModel, Section, parse_section, read_mapping

STUDY = Path("studies/reward_models/params.yaml")


class Study(Section):
    """The whole of studies/reward_models/params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    pairs: str
    """Pairs of stage prefer, with token ids; all their held-out ones measure every model."""
    bodies: Annotated[dict[str, str], Field(min_length=1)]
    """Name -> folder of the model whose body the reward models start from, with the vocabulary of the pairs."""
    shares: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)]
    """Of the prompts to train on, ascending; a larger share of a seed contains its smaller ones."""
    seeds: Count
    """Reward models per body and share, each with its own head, order of pairs and choice of prompts."""
    training: RewardModel
    bootstrap: Count

    @model_validator(mode="after")
    def shares_ascend(self) -> Study:
        if list(self.shares) != sorted(set(self.shares)):
            raise ConfigError(f"shares: got {list(self.shares)}, wanted ascending ones")
        return self


def load_study(path: Path = STUDY) -> Study:
    """The validated study; raises ConfigError with every wrong field named."""
    return parse_section(Study, read_mapping(path), str(path))
