"""What a method changes against another, read from their files in objectives/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.config import ConfigError, read_mapping

IDLE: Mapping[str, tuple[str, frozenset[str]]] = {
    "objective.clip_low": ("objective.clip", frozenset({"none"})),
    "objective.clip_high": ("objective.clip", frozenset({"none"})),
    "objective.kl.estimator": ("objective.kl.place", frozenset({"none"})),
    "objective.kl.coefficient": ("objective.kl.place", frozenset({"none"})),
}
"""Key -> (axis, choices of it under which the key means nothing): then its value is no difference."""


def describe(path: Path) -> str:
    """What the method is: the comment in the first line of its file."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith("# "):
        raise ConfigError(f"{path}: line 1: got {first!r}, wanted a comment: what the method is, with its paper")
    return first.removeprefix("# ")


def changes(path: Path, against: Path) -> list[str]:
    """`scale: group_std -> none` for each key in which the first file differs; `key: value` where the other has none.

    What a file does not state comes from the profile and is no difference.
    """
    own, other = (dict(_leaves(read_mapping(file)["grpo"])) for file in (path, against))
    return [
        f"{key.removeprefix('objective.')}: {other[key]} -> {value}" if key in other else f"{key}: {value}"
        for key, value in own.items()
        if (key not in other or other[key] != value) and not _idle(key, own)
    ]


def _idle(key: str, values: Mapping[str, Any]) -> bool:
    axis, choices = IDLE.get(key, ("", frozenset()))
    return values.get(axis) in choices


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
