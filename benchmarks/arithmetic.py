"""What is computed from measured seconds: ratios, intervals, operations of a model, utilisation, bounds.

Operations are those that the work needs, whoever does it: a prompt once for all its responses, the LM head only where
there is a loss, attention only to what came before. A side that does more has the lower utilisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.evals.intervals import Interval, percentile_interval

BACKWARD = 2
"""Operations of a backward pass, in forward passes: gradients for the inputs and for the weights."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A causal model as its matrix products see it."""

    body: int
    """Parameters without embedding and LM head."""
    vocabulary: int
    hidden: int
    layers: int
    attention_width: int
    """Query heads times their width."""

    @property
    def parameters(self) -> int:
        """Embedding and LM head are one (tied)."""
        return self.body + self.vocabulary * self.hidden


def median_ratio(ours: Sequence[float], theirs: Sequence[float], *, draws: int, seed: int) -> Interval:
    """Median of theirs / ours over pairs measured one after the other; percentile bootstrap interval over the pairs."""
    ratio_N = np.array([b / a for a, b in zip(ours, theirs, strict=True)])
    picked_RN = np.random.default_rng(seed).integers(len(ratio_N), size=(draws, len(ratio_N)))
    return percentile_interval(float(np.median(ratio_N)), np.median(ratio_N[picked_RN], axis=1))


def forward_operations(shape: Shape, prompt: int, responses: Sequence[int], *, scored: int) -> float:
    """Floating-point operations of one forward pass over a prompt and its responses (lengths in tokens).

    2 per parameter and token; 2 per unit of width for each query-key pair and for each weighted value; the head on
    `scored` positions. The usual count (arXiv 2204.02311, appendix B), with causal attention counted as such.
    """
    pairs = prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in responses)
    return executed_operations(shape, tokens=prompt + sum(responses), pairs=pairs, scored=scored)


def executed_operations(shape: Shape, *, tokens: int, pairs: int, scored: int) -> float:
    """The same of whatever is executed: `tokens` through the layers, attention over `pairs` of query and key."""
    attention = 4 * shape.layers * shape.attention_width * pairs
    return float(2 * shape.body * tokens + attention + 2 * shape.vocabulary * shape.hidden * scored)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Slope of log y over log x between the two points (x, y) with the largest x."""
    (x, y), (last_x, last_y) = sorted(points)[-2:]
    if x == last_x:
        raise ValueError(f"got two points at {x:g}, wanted different ones: there is no slope between them")
    return math.log(last_y / y) / math.log(last_x / x)


def utilisation(operations: float, seconds: float, *, rate: float) -> float:
    """Share of the measured matrix rate (operations per second) that the work amounts to."""
    return operations / seconds / rate


def decode_bound(shape: Shape, rows: int, *, weight_bytes: int, rate: float, bandwidth: float) -> float:
    """Most tokens per second of `rows` sequences decoded together: weights read once a step, or their operations.

    Keys and values are left out: at these lengths they are small beside the weights. `bandwidth`: bytes per second.
    """
    reading = shape.parameters * weight_bytes / bandwidth
    computing = 2 * shape.parameters * rows / rate
    return rows / max(reading, computing)


def same(ours: Sequence[float], theirs: Sequence[float], *, tolerance: float) -> bool:
    """Whether losses and norms agree: relative, and absolute below 0.1, as a policy loss may well be 0."""
    return len(ours) == len(theirs) > 0 and all(
        abs(a - b) <= tolerance * max(abs(b), 0.1) for a, b in zip(ours, theirs, strict=True)
    )


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of equal tokens; 0 of different numbers of them."""
    if len(ours) != len(theirs) or not ours:
        return 0.0
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
