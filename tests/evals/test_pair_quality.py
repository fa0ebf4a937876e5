"""How well pairs are ordered, by hand."""

import math

import pytest

from posttrain.evals.pair_quality import Compared, accuracy_interval, margin_buckets, pair_quality


def compared(margins, *, judge=None, gaps=None, prompts=None):
    count = len(margins)
    rows = zip(prompts or map(str, range(count)), margins, judge or [1.0] * count, gaps or [0.0] * count, strict=True)
    return [Compared(*row) for row in rows]


def test_quality_by_hand():
    """UT 1.2: margins [1, -.5, 0]: accuracy 1/3, ties 1/3."""
    quality = pair_quality(compared([1.0, -0.5, 0.0], gaps=[-0.5, 0.05, 0.5]), seed=0)
    assert quality["accuracy"] == pytest.approx(1 / 3)
    assert quality["ties"] == pytest.approx(1 / 3)
    assert quality["mean_margin"] == pytest.approx(0.5 / 3)
    losses = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.5)), math.log(2)]
    assert quality["log_loss"] == pytest.approx(sum(losses) / 3)
    assert quality["accuracy_by_length"] == {"chosen_shorter": 1.0, "similar_length": 0.0, "chosen_longer": 0.0}
    assert quality["pairs_by_length"] == {"chosen_shorter": 1, "similar_length": 1, "chosen_longer": 1}
    # Confidences .731, .622, .5 in bins of their own; right, wrong, wrong.
    confidences = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5)), 0.5]
    assert quality["ece"] == pytest.approx((1 - confidences[0] + confidences[1] + confidences[2]) / 3)


def test_a_flipped_label_counts_for_the_judge_the_other_way():
    """Labels: right, wrong, right, tie. The judge: right, right (the label was flipped), wrong (flipped), tie."""
    quality = pair_quality(compared([2.0, -1.0, 1.0, 0.0], judge=[1.0, -1.0, -3.0, 2.0]), seed=0)
    assert quality["accuracy"] == 0.5
    assert quality["accuracy_to_judge"] == 0.5
    assert pair_quality(compared([1.0, -1.0], judge=[1.0, -1.0]), seed=0)["accuracy_to_judge"] == 1.0


def test_thirds_by_margin():
    """Whatever the sign; equal margins stay together, and fill the upper bucket where all are equal."""
    pairs = compared([1.0, -1.0, 1.0, 1.0, 1.0, -1.0], judge=[0.1, -0.2, 2.0, 2.0, 4.0, -5.0])
    quality = pair_quality(pairs, seed=0)
    assert quality["pairs_by_margin"] == {"small": 2, "middle": 2, "large": 2}
    assert quality["accuracy_by_margin"] == {"small": 0.5, "middle": 1.0, "large": 0.5}
    assert [len(bucket) for bucket in margin_buckets(compared([1.0] * 5)).values()] == [0, 0, 5]
    assert pair_quality(compared([1.0] * 5), seed=0)["accuracy_by_margin"] == {"large": 1.0}


def test_the_interval_resamples_prompts():
    """Two prompts, one wholly right with three pairs, one wholly wrong with one: draws are 0, 3/4 or 1."""
    pairs = compared([1.0, 1.0, 1.0, -1.0], prompts=["a", "a", "a", "b"])
    interval = accuracy_interval(pairs, draws=1000, seed=0)
    assert (interval.value, interval.low, interval.high) == (0.75, 0.0, 1.0)
    certain = accuracy_interval(compared([1.0, 1.0], prompts=["a", "b"]), draws=100, seed=0)
    assert (certain.value, certain.low, certain.high) == (1.0, 1.0, 1.0)
