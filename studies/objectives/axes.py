"""What a method changes against another, read from their files in objectives/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.config import ConfigError, read_mapping


def describe(path: Path) -> str:
    """What the method is: the comment in the first line of its file."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith("# "):
        raise ConfigError(f"{path}: line 1: got {first!r}, wanted a comment: what the method is, with its paper")
    return first.removeprefix("# ")


def changes(path: Path, against: Path) -> list[str]:
    """`scale: group_std -> none` for each key in which the first file differs; `key: value` where the other has none.

    An axis has its choice under its own name, `clip: ppo -> cispo`, and the numbers of that choice below it,
    `clip.high: 0.2 -> 4.0`. What a file does not state comes from the profile and is no difference.
    """
    own, other = (dict(_leaves(read_mapping(file)["grpo"])) for file in (path, against))
    return [
        f"{key.removeprefix('objective.')}: " + (f"{other[key]} -> {value}" if key in other else f"{value}")
        for key, value in own.items()
        if key not in other or other[key] != value
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; `kind` has the key of its mapping, as a choice without numbers has."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix.removesuffix(".") if key == "kind" else f"{prefix}{key}", value
