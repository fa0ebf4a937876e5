"""The numbers of the study: params.yaml beside this file, as strict as the chain's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from posttrain.config import ConfigError, Count, Generation, Optimizer, Positive, Section

Aggregate = Literal["min", "product", "mean", "last"]
Label = Literal["soft", "hard"]


class Labels(Section):
    """Monte-Carlo labels of steps, from problems of the training set."""

    problems: Count
    samples: Count
    """Responses per problem whose steps are labelled."""
    completions: Count
    """Ways to go on from each step."""


class Training(Section):
    optimizer: Optimizer
    epochs: Positive
    batch_responses: Count


class Rerank(Section):
    problems: Count
    """Held-out ones."""
    samples: Count
    """The pool of each."""
    at: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Numbers of samples to choose from; each divides the pool."""
    aggregate: Aggregate
    """One score of a response from those of its steps; also the value of a prefix in the search."""
    step_samples: Count
    """Samples of each problem whose steps are compared with the exact checker."""

    @model_validator(mode="after")
    def pool_is_divided(self) -> Rerank:
        wrong = [size for size in self.at if self.samples % size]
        if wrong or self.step_samples > self.samples:
            raise ValueError(f"at: every N must divide samples ({self.samples}), step_samples must not exceed them")
        return self


class Search(Section):
    problems: Annotated[int, Field(ge=0)]
    """The first ones of `rerank`; 0: no search."""
    at: tuple[Count, ...]
    """The budgets: as many tokens as best of N generates on the problem, on average."""
    label: Label
    """Which process reward model guides the search; the exact checker does besides."""
    rule: Literal["uct", "puct"]
    exploration: Positive
    width: Count
    """Steps proposed at a node."""
    reserve: Annotated[int, Field(ge=0)]
    """Tokens kept back for a response while none is complete."""
    simulations: Count
    """Most descents per problem."""


class Settings(Section):
    seed: Annotated[int, Field(ge=0)]
    policy: str
    """The model that samples, proposes and completes, and whose body the process reward models start from."""
    train: str
    heldout: str
    reward_model: str | None
    models: Annotated[str, Field(min_length=1)]
    """Folder of the process reward models when all is done: `soft` and `hard`, by their labels."""
    generation: Generation
    labels: Labels
    training: Training
    rerank: Rerank
    search: Search
    bootstrap: Count

    @model_validator(mode="after")
    def search_is_compared(self) -> Settings:
        if not set(self.search.at) <= set(self.rerank.at) or self.search.problems > self.rerank.problems:
            raise ValueError("search: at and problems must be among those of rerank, which it is compared with")
        return self


def load_settings(path: Path) -> Settings:
    """Raises ConfigError naming every wrong field."""
    try:
        return Settings.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc']))}: got {e['input']!r}; wanted: {e['msg']}" for e in error.errors()
        )
        raise ConfigError("\n".join(lines)) from error
