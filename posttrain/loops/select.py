"""Which of a prompt's samples a supervised stage learns from: rejection sampling in its variants.

Two questions, answered apart: is a sample fit to be learnt from, and how many of the fit ones stay. Of several right
answers to a prompt all may stay, the first, or the shortest (Kimi k1.5, arXiv 2501.12599, section 2.4: shortest
rejection sampling, n = 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from posttrain.curation.normalise import Ngram, arithmetic, words
from posttrain.loops.sample import Sample

Choice = Callable[[Sequence[Sample]], list[Sample]]


def is_right(sample: Sample) -> bool:
    """Correct, in the form of its mode, and ended by the model itself."""
    return sample.correct and sample.parts.well_formed and sample.rollout.finish == "stop"


def every(samples: Sequence[Sample]) -> list[Sample]:
    """All of them."""
    return list(samples)


def first(samples: Sequence[Sample]) -> list[Sample]:
    """The first in the order of sampling, which is any: what `shortest` is to be compared with."""
    return list(samples[:1])


def shortest(samples: Sequence[Sample]) -> list[Sample]:
    """The one of fewest tokens; of several the first."""
    return sorted(samples, key=lambda sample: sample.tokens)[:1]


CHOICES: Mapping[str, Choice] = {"all": every, "first": first, "shortest": shortest}


def reasoning(sample: Sample) -> Ngram:
    """What makes a solution that solution: its numbers and operators where it has equations, else its words.

    Two texts that calculate the same in other words are one (RFT, arXiv 2308.01825, section 3.3: distinct equation
    lists); case, spacing and punctuation never count.
    """
    tokens = words(sample.parts.thinking or "")
    equations = arithmetic(tokens)
    return equations if "=" in equations else tokens


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each way to reason, in order."""
    ways: dict[Ngram, Sample] = {}
    for sample in samples:
        ways.setdefault(reasoning(sample), sample)
    return list(ways.values())
