"""Noise by its rates: against probabilities worked out by hand."""

import math
import random
from functools import partial

import pytest

from posttrain.evals.annotators import AS_JUDGED, bradley_terry, each_annotator, flip, majority

LABELS = 40000


def flipped(annotate, margin=1.0):
    rng = random.Random(0)
    rows = [annotate(margin, rng) for _ in range(LABELS)]
    return [sum(column) / LABELS for column in zip(*rows, strict=True)]


def near(expected):
    """Within four standard errors."""
    return pytest.approx(expected, abs=4 * math.sqrt(0.25 / LABELS))


def test_a_flip_looks_at_no_margin():
    assert flipped(partial(flip, rate=0.25)) == [near(0.25)]
    assert flipped(partial(flip, rate=0.25), margin=7.0) == flipped(partial(flip, rate=0.25))
    assert flipped(AS_JUDGED) == [0.0]


@pytest.mark.parametrize(("margin", "temperature", "follows"), [(1.0, 1.0, 0.731059), (4.0, 2.0, 0.880797)])
def test_bradley_terry_follows_by_its_margin(margin, temperature, follows):
    """sigmoid(1) and sigmoid(2)."""
    assert flipped(partial(bradley_terry, temperature=temperature), margin) == [near(1 - follows)]


def test_bradley_terry_at_its_bounds():
    assert flipped(partial(bradley_terry, temperature=1e9)) == [near(0.5)]
    assert flipped(partial(bradley_terry, temperature=1e-9)) == [0.0]


def test_annotators_have_rates_of_their_own():
    assert flipped(partial(each_annotator, rates=(0.1, 0.2, 0.3))) == [near(0.1), near(0.2), near(0.3)]


def test_a_majority_errs_when_most_do():
    """Two of three or all: .1 .2 .7 + .1 .8 .3 + .9 .2 .3 + .1 .2 .3 = .098."""
    assert flipped(partial(majority, rates=(0.1, 0.2, 0.3))) == [near(0.098)]
    assert flipped(partial(majority, rates=(0.2,))) == flipped(partial(flip, rate=0.2))
