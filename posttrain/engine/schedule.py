"""Learning rate of each optimizer step, as pure functions of the step number."""

from __future__ import annotations

import math

from posttrain import config


def warmup_steps(total_steps: int, warmup: float) -> int:
    """Steps over which the rate rises; a share above 0 gives at least one."""
    return math.ceil(total_steps * warmup)


def decay(progress: float, *, schedule: str, final_ratio: float) -> float:
    """Share of the peak rate after `progress` (0 ... 1) of the steps that follow the warm-up."""
    if schedule == "constant":
        return 1.0
    remaining = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_ratio + (1.0 - final_ratio) * remaining


def learning_rate(step: int, *, total_steps: int, optimizer: config.Optimizer) -> float:
    """Rate of step `step` (0-based): rises linearly, reaches lr at the end of the warm-up, then follows the schedule.

    The last step has `final_lr_ratio * lr` (linear and cosine). Steps beyond the plan keep the last rate.
    """
    rising = warmup_steps(total_steps, optimizer.warmup)
    if step < rising:
        return optimizer.lr * (step + 1) / rising
    falling = max(total_steps - 1 - rising, 1)
    progress = min((step - rising) / falling, 1.0)
    return optimizer.lr * decay(progress, schedule=optimizer.schedule, final_ratio=optimizer.final_lr_ratio)
