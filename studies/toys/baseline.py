"""Variance of REINFORCE with a constant baseline: one Bernoulli logit whose action is its reward.

The estimator of a sample is (r - b)(r - p), with p the probability of r = 1 and r - p the score of the logit. Its mean
is p(1 - p) whatever b is; its variance need not fall when b is the mean reward: for rare failures it grows.
"""

from __future__ import annotations


def moments(p: float, baseline: float) -> tuple[float, float]:
    """(mean, variance) of the estimator, over both outcomes."""
    values = {r: (r - baseline) * (r - p) for r in (0.0, 1.0)}
    mean = p * values[1.0] + (1.0 - p) * values[0.0]
    return mean, p * (values[1.0] - mean) ** 2 + (1.0 - p) * (values[0.0] - mean) ** 2


def best_baseline(p: float) -> float:
    """1 - p: both outcomes then give the same estimate, and the variance is 0."""
    return 1.0 - p
