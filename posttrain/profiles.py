"""params.yaml from a profile and, if wanted, a published objective: `tiny` is complete, the rest lies over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from posttrain.config import ConfigError, parse_params

COMPLETE = "tiny"
HEADER = "# Written by `posttrain use {command}`. Edit freely: this file, not the profile, is what runs.\n"


def compose(profile: str, objective: str | None, *, root: Path = Path()) -> str:
    """The text of params.yaml; raises ConfigError for an unknown name or values that do not fit."""
    base = _path(root / "profiles", COMPLETE)
    overlays = [_path(root / "profiles", profile)] if profile != COMPLETE else []
    if objective is not None:
        overlays.append(_path(root / "objectives", objective))
    header = HEADER.format(command=profile + (f" --objective {objective}" if objective else ""))
    text = base.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    for overlay in overlays:
        values = merge(values, yaml.safe_load(overlay.read_text(encoding="utf-8")))
    parse_params(values, " + ".join(str(path) for path in (base, *overlays)))
    if not overlays:
        return header + text  # with its comments
    return header + yaml.dump(values, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=120)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Deep merge, `above` wins. Lists are replaced, and so is a mapping whose `kind` changes: its keys are others."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = merge(old, value) if same_kind and isinstance(old, dict) else value
    return merged


def _path(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none here"
        raise ConfigError(f"{path}: no such file; {folder.name}: {known}")
    return path


class _Plain(yaml.SafeDumper):
    """Without anchors: a list used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
