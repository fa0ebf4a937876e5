"""The models of the chain in their order: what is compared with what."""

from __future__ import annotations

MODELS = ("base", "sft", "grpo", "fuse", "align", "distill")
"""Each is evaluated, and compared with the one before it."""


def previous_model(name: str) -> str | None:
    """The model before `name` in the chain; None for the first."""
    place = MODELS.index(name)
    return MODELS[place - 1] if place else None
