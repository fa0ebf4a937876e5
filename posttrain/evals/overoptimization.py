"""Overoptimization: what optimising a proxy does to the gold score, against the square root of the KL that it spends.

Two ways to optimise. *Best of n*: the sample that a score ranks highest among n; its expected gold comes exactly from
one pool of samples, and its KL from n alone. *RL*: a curve of checkpoints with their measured KL. For both, the law of
Gao et al. with d = sqrt(KL(policy || start)) in nats and R the gold score gained,

    best of n   R(d) = d (alpha - beta d)          peak at d = alpha / (2 beta)
    RL          R(d) = d (alpha - beta ln d)       peak at d = exp(alpha / beta - 1)

fitted by least squares on R / d, which is linear in both numbers. RL spends far more KL than best of n for the same
gain, so the two are not compared at equal KL.

What a curve *did* is told without a law: the place where measured gold is highest, and the fall from there to the end.
The highest of many noisy points lies above the last one by chance alone; so the interval of the fall is one that holds
for the falls from all points at once.

Sources: Gao et al., arXiv 2210.10760 (laws, section 3.1; estimator, appendix A); Stiennon et al., arXiv 2009.01325,
appendix G.3, and Beirami et al., arXiv 2401.01879 (KL of best of n).
Shapes: Q questions, K samples of a question, D points of a curve, R bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.evals.intervals import LEVEL, Floats, Interval, bootstrap_mean, percentile_interval

LEAST_DISTANCE = 0.3
"""Points nearer to the start are left out of a fit: R / d divides by d, and the RL law is infinitely steep at 0."""
LEAST_POINTS = 3
"""Points that a fit of two numbers needs."""
FURTHEST = 20.0
"""ln d beyond which a peak of the RL law is none: no run spends e^40 nats."""


def best_of_n_kl(n: int) -> float:
    """KL(best of n || policy) in nats, ln n - (n - 1) / n: exact for scores without ties, with them an upper bound."""
    if n < 1:
        raise ValueError(f"best of n: got n={n}, wanted at least 1")
    return math.log(n) - (n - 1) / n


def rank_weights(pool: int, n: int) -> Floats:
    """Probability that the best of `n` drawn from `pool` has each rank, the lowest first: C(i-1, n-1) / C(K, n), [K].

    As a product from the top rank down, which neither overflows nor cancels.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"best of n: got n={n} with a pool of {pool} samples, wanted 1 <= n <= pool")
    ranks = np.arange(pool, 1, -1, dtype=np.float64)
    factors = np.maximum(ranks - n, 0.0) / (ranks - 1.0)
    return np.concatenate([[1.0], np.cumprod(factors)])[::-1] * (n / pool)


def best_of_n(score_QK: npt.ArrayLike, value_QK: npt.ArrayLike, *, at: Sequence[int]) -> Floats:
    """Expected value of the sample that `score` ranks highest among n, for each n of `at`, [Q, D].

    The mean over all ways to draw n of a question's K samples without replacement: unbiased, and of less variance than
    blocks. Samples of equal score share their mean value, which is what breaking the tie at random gives on average.
    """
    scores, values = np.asarray(score_QK, dtype=np.float64), np.asarray(value_QK, dtype=np.float64)
    if scores.shape != values.shape or scores.ndim != 2:
        raise ValueError(f"best of n: got scores {scores.shape} and values {values.shape}, wanted both [Q, K]")
    weights_KD = np.stack([rank_weights(scores.shape[1], n) for n in at], axis=1)
    ordered_QK = np.empty_like(values)
    for q, (score_K, value_K) in enumerate(zip(scores, values, strict=True)):
        _, place_K, size = np.unique(score_K, return_inverse=True, return_counts=True)
        ordered_QK[q] = np.repeat(np.bincount(place_K, weights=value_K) / size, size)
    curve_QD: Floats = ordered_QK @ weights_KD
    return curve_QD


def best_of_n_law(distance: Floats, alpha: float, beta: float) -> Floats:
    """Gold gained at distances d > 0."""
    return distance * (alpha - beta * distance)


def rl_law(distance: Floats, alpha: float, beta: float) -> Floats:
    """Gold gained at distances d > 0."""
    return distance * (alpha - beta * np.log(distance))


def best_of_n_peak(alpha: float, beta: float) -> tuple[float, float] | None:
    """(d, R) where the law is highest; None where it rises for ever or never."""
    if alpha <= 0 or beta <= 0:
        return None
    return alpha / (2 * beta), alpha**2 / (4 * beta)


def rl_peak(alpha: float, beta: float) -> tuple[float, float] | None:
    """(d, R) where the law is highest; None where it rises for ever."""
    if beta <= 0 or alpha / beta - 1 > FURTHEST:
        return None
    distance = math.exp(alpha / beta - 1)
    return distance, beta * distance


def _itself(distance: Floats) -> Floats:
    return distance


LAWS: Mapping[str, Callable[[Floats, float, float], Floats]] = {"best_of_n": best_of_n_law, "rl": rl_law}
PEAKS: Mapping[str, Callable[[float, float], tuple[float, float] | None]] = {"best_of_n": best_of_n_peak, "rl": rl_peak}
_BENDS: Mapping[str, Callable[[Floats], Floats]] = {"best_of_n": _itself, "rl": np.log}
"""What R / d = alpha - beta * (...) is linear in."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A law on a measured curve; 95 % intervals over resampled questions."""

    alpha: Interval
    beta: Interval
    peak_kl: Interval | None
    """KL in nats where the law peaks; None where the interval of beta is not above 0: no turn is told apart."""
    peak_gain: Interval | None
    points: int
    """Fitted, those beyond LEAST_DISTANCE."""

    def to_json(self) -> dict[str, Any]:
        intervals = {
            "alpha": self.alpha,
            "beta": self.beta,
            "peak_kl": self.peak_kl,
            "peak_gain": self.peak_gain,
        }
        return {"points": self.points} | {
            name: None if value is None else value.to_json() for name, value in intervals.items()
        }


def fit_law(law: str, kl_QD: npt.ArrayLike, gain_QD: npt.ArrayLike, counts_RQ: Floats) -> Fit | None:
    """The law's numbers from a curve of gold gained; None with too few points beyond LEAST_DISTANCE.

    `law` is a key of LAWS; `kl_QD`: nats spent on each question (for best of n the same for all); `counts_RQ` from
    posttrain.evals.intervals.resample. Questions are drawn whole, so that the points of a draw belong together.
    """
    kl, gain = np.asarray(kl_QD, dtype=np.float64), np.asarray(gain_QD, dtype=np.float64)
    if kl.shape != gain.shape or kl.ndim != 2:
        raise ValueError(f"law: got KL {kl.shape} and gains {gain.shape}, wanted both [Q, D]")
    far = kl.mean(0) > LEAST_DISTANCE**2
    if far.sum() < LEAST_POINTS:
        return None
    kl, gain = kl[:, far], gain[:, far]
    every_1Q = np.ones((1, len(kl)))
    alpha, beta = (float(number[0]) for number in _least_squares(law, kl, gain, every_1Q))
    alpha_R, beta_R = _least_squares(law, kl, gain, counts_RQ)
    found = Fit(percentile_interval(alpha, alpha_R), percentile_interval(beta, beta_R), None, None, int(far.sum()))
    peak = PEAKS[law](alpha, beta)
    peaks = filter(None, map(PEAKS[law], alpha_R.tolist(), beta_R.tolist()))
    if peak is None or found.beta.low <= 0:
        return found
    kl_R, gain_R = np.array([(d * d, r) for d, r in peaks]).reshape(-1, 2).T
    return Fit(
        found.alpha,
        found.beta,
        percentile_interval(peak[0] ** 2, kl_R),
        percentile_interval(peak[1], gain_R),
        found.points,
    )


def _least_squares(law: str, kl_QD: Floats, gain_QD: Floats, counts_RQ: Floats) -> tuple[Floats, Floats]:
    """alpha [R] and beta [R] of R / d = alpha - beta * bend(d), by draw."""
    draws_R1 = counts_RQ.sum(1, keepdims=True)
    distance_RD = np.sqrt(counts_RQ @ kl_QD / draws_R1)
    ratio_RD = counts_RQ @ gain_QD / draws_R1 / distance_RD
    bend_RD = _BENDS[law](distance_RD)
    middle_R1 = bend_RD.mean(1, keepdims=True)
    beta_R = -((bend_RD - middle_R1) * ratio_RD).sum(1) / ((bend_RD - middle_R1) ** 2).sum(1)
    return ratio_RD.mean(1) + beta_R * middle_R1[:, 0], beta_R


@dataclass(frozen=True, slots=True)
class Turn:
    """Where measured gold is highest, and what it lost from there on; 95 % intervals over resampled questions."""

    index: int
    """The point of highest gold; 0 is the start."""
    gain: Interval
    """Gold there minus gold at the start. The highest of several noisy points: a little too high."""
    end: Interval
    """Gold at the last point minus gold at the start."""
    fall: Interval
    """Gold at the last point minus gold at the highest, with an interval that allows for the choice of the point."""

    @property
    def turned(self) -> bool:
        """Whether gold certainly fell."""
        return self.fall.high < 0

    def to_json(self) -> dict[str, Any]:
        intervals = {"gain": self.gain, "end": self.end, "fall": self.fall}
        return {"index": self.index, "turned": self.turned} | {name: v.to_json() for name, v in intervals.items()}


def find_turn(gold_QD: npt.ArrayLike, counts_RQ: Floats) -> Turn:
    """The turn of a gold curve whose first point is the start; at least two questions and two points."""
    gold = np.asarray(gold_QD, dtype=np.float64)
    if gold.ndim != 2 or min(gold.shape) < 2:
        raise ValueError(f"turn: got gold {gold.shape}, wanted at least two questions and two points, [Q, D]")
    index = int(gold.mean(0).argmax())
    return Turn(
        index,
        bootstrap_mean(gold[:, index] - gold[:, 0], counts_RQ),
        bootstrap_mean(gold[:, -1] - gold[:, 0], counts_RQ),
        _falls(gold, counts_RQ)[index],
    )


def _falls(gold_QD: Floats, counts_RQ: Floats) -> list[Interval]:
    """Last point minus each point, with simultaneous intervals: all hold at once in 95 % of the cases.

    As wide, in standard errors, as the largest deviation among all points is in 95 % of the draws (sup-t bands;
    Montiel Olea and Plagborg-Moller, 2019).
    """
    falls_QD = gold_QD[:, -1:] - gold_QD
    fall_D = falls_QD.mean(0)
    deviation_RD = counts_RQ @ falls_QD / len(falls_QD) - fall_D
    error_D = deviation_RD.std(0)
    scale_D = np.where(error_D > 0, error_D, 1.0)
    width_D = np.quantile((np.abs(deviation_RD) / scale_D).max(1), LEVEL) * error_D
    return [
        Interval(float(fall), float(fall - width), float(fall + width))
        for fall, width in zip(fall_D, width_D, strict=True)
    ]


def in_one_sentence(turn: Turn, kl_D: Sequence[float], *, unit: str) -> str:
    """Where gold peaked and what to stop at; `kl_D`: nats at each point, `unit`: that of gold."""

    def place(kl: float) -> str:
        return f"KL {kl:.2f} nats (sqrt {math.sqrt(max(kl, 0.0)):.2f})"

    if not turn.turned:
        what, moral = ("did not turn down", "nothing says to stop earlier")
        if turn.end.value <= 0:
            what, moral = ("neither rose nor surely fell", "nothing was gained")
        return (
            f"Gold {what} up to {place(kl_D[-1])}, where it is {turn.end.value:+.2f} "
            f"[{turn.end.low:+.2f}, {turn.end.high:+.2f}] {unit} from the start: {moral}."
        )
    lost = f"{-turn.fall.value:.2f} [{-turn.fall.high:.2f}, {-turn.fall.low:.2f}] {unit}"
    if turn.index == 0:
        return f"Gold was highest at the start and had lost {lost} at {place(kl_D[-1])}: do not optimise this score."
    return (
        f"Gold peaked at {place(kl_D[turn.index])}, {turn.gain.value:+.2f} {unit} from the start: stop there. At "
        f"{place(kl_D[-1])} it had lost {lost}."
    )
