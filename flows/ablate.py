"""A grid of overrides, one tracked execution of the chain each.

    python -m flows.ablate --set grpo.optimizer.lr=1.0e-4,2.0e-4 --set seed=1,2 --stop-after evaluate@grpo

DVC runs only what an override touches. params.yaml is put back at the end; the next `make run` restores its results
from the run cache. In MLflow each execution carries its overrides as tags.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from flows.execution import run_program
from flows.post_train import STAGES, post_train
from posttrain.config import ConfigError, parse_params
from posttrain.files import write_atomic

PARAMS = Path("params.yaml")


def grid(settings: Sequence[str]) -> list[dict[str, Any]]:
    """`["a.b=1,2", "c=x"]` -> every combination: [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]."""
    axes: list[list[tuple[str, Any]]] = []
    for setting in settings:
        name, equals, values = setting.partition("=")
        if not equals or not values:
            raise ConfigError(f"--set {setting}: wanted name=value[,value...]")
        axes.append([(name, yaml.safe_load(value)) for value in values.split(",")])
    return [dict(combination) for combination in itertools.product(*axes)]


def override(text: str, changes: dict[str, Any]) -> str:
    """params.yaml with some keys changed; raises ConfigError when a key is unknown or a value does not fit."""
    values = yaml.safe_load(text)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = values
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ConfigError(f"--set {dotted}: no such key in {PARAMS}")
        section[last] = value
    parse_params(values, f"{PARAMS} with {changes}")
    return str(yaml.safe_dump(values, sort_keys=False))


@flow(name="ablate")
def ablate(settings: list[str], stop_after: str | None = None) -> None:
    """One execution of the chain per combination; the first failure ends it."""
    original = PARAMS.read_text(encoding="utf-8")
    combinations = grid(settings)
    texts = [override(original, changes) for changes in combinations]  # all are checked before the first one runs
    try:
        for changes, text in zip(combinations, texts, strict=True):
            write_atomic(PARAMS, text)
            post_train(stop_after, tags={f"override.{name}": str(value) for name, value in changes.items()})
    finally:
        write_atomic(PARAMS, original)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the chain once per combination of overrides.")
    parser.add_argument("--set", action="append", required=True, metavar="KEY=VALUE[,VALUE...]", dest="settings")
    parser.add_argument("--stop-after", choices=STAGES, metavar="STAGE", help="the last stage to run")
    arguments = parser.parse_args()
    return run_program(
        lambda: ablate(arguments.settings, arguments.stop_after),
        stopped="The grid stopped.",
        interrupted="params.yaml is as it was.",
    )


if __name__ == "__main__":
    sys.exit(main())
