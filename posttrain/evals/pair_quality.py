"""How well a reward model orders pairs: accuracy, log loss, calibration, and where it is right only by a shortcut.

Length is the commonest shortcut, so accuracy is given by length gap too; and by the judge's margin, since what is plain
to the judge should be plain to the model. Labels hold noise: `accuracy` is against them, `accuracy_to_judge` against
the judge before noise, which is what the model should have learnt.

Shape: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.evals.calibration import Forecast, ece
from posttrain.evals.intervals import Interval, bootstrap_ratio, resample

CALIBRATION_BINS = 20
"""Over [0, 1], of which confidences fill the upper half."""
SIMILAR = 0.1
"""Responses whose lengths differ by at most this share of the longer one count as equally long."""
DRAWS = 10000
"""Of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A pair with what a reward model says of it."""

    prompt: str
    """The cluster: pairs of one prompt are not independent."""
    reward_margin: float
    """Reward of chosen minus that of rejected."""
    judge_margin: float
    """The judge's, negative where noise flipped the label."""
    length_gap: float
    """(chosen - rejected) / longer, in response tokens: negative where the shorter response was chosen."""

    @property
    def right(self) -> bool:
        """A tie is wrong."""
        return self.reward_margin > 0

    @property
    def as_judged(self) -> bool:
        """Ordered as the judge did; a tie is not."""
        return self.reward_margin > 0 if self.judge_margin >= 0 else self.reward_margin < 0


def pair_quality(pairs_B: Sequence[Compared], *, seed: int) -> dict[str, Any]:
    """Accuracy with its interval over prompts, ties, log loss and calibration of P(chosen is better) = sigmoid(margin).

    `accuracy_by_length`: chosen shorter, similar (within SIMILAR), longer. `accuracy_by_margin`: thirds of the pairs by
    the judge's margin, whatever its sign; equal margins stay together. Buckets without pairs have no accuracy.
    """
    interval = accuracy_interval(pairs_B, draws=DRAWS, seed=seed)
    by_length, by_margin = length_buckets(pairs_B), margin_buckets(pairs_B)
    margins_B = [pair.reward_margin for pair in pairs_B]
    return {
        "accuracy": interval.value,
        "accuracy_interval": {"low": interval.low, "high": interval.high},
        "accuracy_to_judge": _mean([pair.as_judged for pair in pairs_B]),
        "ties": _mean([margin == 0 for margin in margins_B]),
        "mean_margin": _mean(margins_B),
        "log_loss": log_loss(margins_B),
        "ece": calibration_error(margins_B),
        "accuracy_by_length": _accuracies(by_length),
        "pairs_by_length": {name: len(bucket) for name, bucket in by_length.items()},
        "accuracy_by_margin": _accuracies(by_margin),
        "pairs_by_margin": {name: len(bucket) for name, bucket in by_margin.items()},
    }


def accuracy_interval(pairs_B: Sequence[Compared], *, draws: int, seed: int) -> Interval:
    """Share of pairs ordered as labelled, with a percentile interval over resampled prompts."""
    _, prompt_B = np.unique([pair.prompt for pair in pairs_B], return_inverse=True)
    right_Q = np.bincount(prompt_B, weights=[float(pair.right) for pair in pairs_B])
    counts_RQ = resample(len(right_Q), draws=draws, seed=seed)
    interval = bootstrap_ratio(right_Q, np.bincount(prompt_B), counts_RQ)
    assert interval is not None  # every prompt has a pair
    return interval


def length_buckets(pairs_B: Sequence[Compared]) -> dict[str, list[Compared]]:
    return {
        "chosen_shorter": [pair for pair in pairs_B if pair.length_gap < -SIMILAR],
        "similar_length": [pair for pair in pairs_B if abs(pair.length_gap) <= SIMILAR],
        "chosen_longer": [pair for pair in pairs_B if pair.length_gap > SIMILAR],
    }


def margin_buckets(pairs_B: Sequence[Compared]) -> dict[str, list[Compared]]:
    sizes = sorted(abs(pair.judge_margin) for pair in pairs_B)
    middle, large = sizes[len(sizes) // 3], sizes[2 * len(sizes) // 3]
    return {
        "small": [pair for pair in pairs_B if abs(pair.judge_margin) < middle],
        "middle": [pair for pair in pairs_B if middle <= abs(pair.judge_margin) < large],
        "large": [pair for pair in pairs_B if abs(pair.judge_margin) >= large],
    }


def log_loss(margins_B: Sequence[float]) -> float:
    """Mean of -log sigmoid(margin) (nats); log 2 is knowing nothing."""
    return _mean([max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins_B])


def calibration_error(margins_B: Sequence[float]) -> float:
    """ECE of the confidence sigmoid(|margin|), in [0.5, 1], with which the model picks a side of each pair.

    Which response is called chosen is known beforehand, so it is the model's own pick that is right or wrong.
    """
    forecasts = [Forecast(i, 1.0 / (1.0 + math.exp(-min(abs(m), 700.0))), m > 0) for i, m in enumerate(margins_B)]
    return ece(forecasts, bins=CALIBRATION_BINS)


def _accuracies(buckets: dict[str, list[Compared]]) -> dict[str, float]:
    return {name: _mean([pair.right for pair in bucket]) for name, bucket in buckets.items() if bucket}


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values)
