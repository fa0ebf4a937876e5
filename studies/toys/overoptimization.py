"""A proxy that is wrong in one direction, optimised until it hurts: everything in closed form (arXiv 2210.10760).

An answer has two properties, x1 and x2, independent standard normals under the start policy. The proxy wants both
alike, x1 + x2; the gold score is x1 - x2^2 / 4: extremes of x2 are no good, and near 0 nobody can tell.

*Tilted*: the policy of the largest proxy at a given KL has both means moved to t. Then KL = t^2, d = t, and gold gained
is d - d^2 / 4: the law of best of n with alpha 1 and beta 1/4, which peaks at d = 2 and is back at 0 at d = 4.

*Best of n*: s = (x1 + x2) / sqrt(2) becomes the largest of n standard normals, (x1 - x2) / sqrt(2) stays one, so that
gold = E[s] / sqrt(2) - E[s^2] / 8 - 1/8.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr

from posttrain.evals.intervals import Floats

REACH = 10.0
"""Standard deviations over which the normal density is integrated."""


def tilted(distance: float) -> tuple[float, float]:
    """(proxy, gold gained) of the tilted policy at d = sqrt(KL)."""
    return 2.0 * distance, distance - 0.25 * distance**2


def best_of_n(n: int) -> tuple[float, float]:
    """(proxy, gold) of the best of n by the proxy."""
    first, second = largest_of(n)
    return math.sqrt(2.0) * first, first / math.sqrt(2.0) - second / 8.0 - 0.125


def largest_of(n: int) -> tuple[float, float]:
    """E[s] and E[s^2] of the largest of n standard normals, whose density is n phi(s) Phi(s)^(n - 1).

    The sum over an even grid: for a smooth density that vanishes at both ends it errs by rounding alone.
    """
    s, step = np.linspace(-REACH, REACH, 20001, retstep=True)
    log_density = math.log(n) - 0.5 * s**2 - 0.5 * math.log(2.0 * math.pi) + (n - 1) * log_ndtr(s)
    density = np.exp(log_density) * step
    return float(density @ s), float(density @ s**2)


def sample(questions: int, pool: int, *, seed: int) -> tuple[Floats, Floats]:
    """Proxy and gold of `pool` answers to each question, [Q, K]."""
    x_2QK = np.random.default_rng(seed).standard_normal((2, questions, pool))
    return x_2QK[0] + x_2QK[1], x_2QK[0] - 0.25 * x_2QK[1] ** 2
