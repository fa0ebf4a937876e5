"""The coefficient of the KL, which may follow the KL measured (Ziegler et al., arXiv 1909.08593, section 2.2)."""

from __future__ import annotations

LARGEST_ERROR = 0.2
"""Bound of the relative error that a step reacts to."""


def adapted(coefficient: float, kl: float, *, target: float, horizon: int, samples: int) -> float:
    """beta (1 + clip(KL / target - 1, -0.2, 0.2) samples / horizon); `kl` and `target` in nats per response."""
    error = min(max(kl / target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1.0 + error * samples / horizon)
