"""Weights of reward terms over the steps of a run.

A term that starts late (Kimi k1.5's length reward, arXiv 2501.12599, section 2.3.3) has weight 0 before its start.
"""

from __future__ import annotations


def scheduled_weight(weight: float, *, start: int, ramp: int, step: int) -> float:
    """Weight in force at `step` (0-based): 0 before `start`, then linearly up to `weight` over `ramp` steps."""
    if step < start:
        return 0.0
    return weight * min(1.0, (step - start + 1) / (ramp + 1))
