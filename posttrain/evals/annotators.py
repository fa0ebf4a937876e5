"""How a judge's order becomes labels: simulated annotators, who are not always right.

A reward model that has only seen clean labels says little about one that has not: overoptimisation shows with noisy
annotators, and not with one clean judge (AlpacaFarm, arXiv 2305.14387). One function per kind of noise; each gets the
judge's margin (> 0) and says of every label it gives whether it goes against the judge.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

Annotation = Callable[[float, random.Random], list[bool]]
"""(margin, source of chance) -> of each label, True where it is flipped."""


def flip(margin: float, rng: random.Random, *, rate: float) -> list[bool]:
    """One label, flipped with probability `rate` whatever the margin (AlpacaFarm flips a quarter)."""
    return [rng.random() < rate]


def bradley_terry(margin: float, rng: random.Random, *, temperature: float) -> list[bool]:
    """One label that follows the judge with probability sigmoid(margin / temperature)."""
    return [rng.random() >= 1.0 / (1.0 + math.exp(-margin / temperature))]


def each_annotator(margin: float, rng: random.Random, *, rates: Sequence[float]) -> list[bool]:
    """A label of each annotator, who flips it with a rate of their own."""
    return [rng.random() < rate for rate in rates]


def majority(margin: float, rng: random.Random, *, rates: Sequence[float]) -> list[bool]:
    """The label that most of an odd number of annotators give."""
    return [2 * sum(each_annotator(margin, rng, rates=rates)) > len(rates)]


AS_JUDGED: Annotation = partial(flip, rate=0.0)
"""No noise."""
