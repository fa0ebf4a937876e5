import itertools
import random

import pytest

from posttrain.evals.intervals import resample
from posttrain.evals.judge import Judged, margin, order, win_rate


def some(count: int, seed: int = 0) -> list[Judged]:
    rng = random.Random(seed)
    return [Judged(rng.random() < 0.5, rng.random() < 0.5, rng.randrange(1, 6)) for _ in range(count)]


def test_levels() -> None:
    best = Judged(True, True, 100)
    assert margin(best, Judged(False, True, 1)) == pytest.approx(4 - 0.99)
    assert margin(best, Judged(True, False, 1)) == pytest.approx(2 - 0.99)
    assert margin(best, Judged(True, True, 200)) == pytest.approx(0.5)
    assert margin(best, best) == 0.0


def test_sign_is_the_lexicographic_order() -> None:
    for a, b in itertools.product(some(40), repeat=2):
        first, second = ((r.correct, r.single_script, -r.tokens) for r in (a, b))
        assert (margin(a, b) > 0) == (first > second)
        assert margin(a, b) == -margin(b, a)


def test_order_gives_the_better_one() -> None:
    good, bad = Judged(True, True, 5), Judged(False, True, 5)
    assert order(good, bad) == (0, 4.0)
    assert order(bad, good) == (1, 4.0)
    assert order(good, good) == (0, 0.0)


def test_win_rate_by_hand() -> None:
    """One question: of 2 x 2 comparisons one by correctness, one by script, one by length, one tie: 3.5 of 4."""
    first = [[Judged(True, True, 10), Judged(True, True, 20)]]
    second = [[Judged(True, True, 20), Judged(True, False, 5)]]
    won = win_rate(first, second, resample(1, draws=10, seed=0))
    assert won.rate.value == pytest.approx(3.5 / 4)
    assert (won.ties, won.by_correct, won.by_script, won.by_length) == pytest.approx((0.25, 0.0, 0.5, 0.25))


def test_win_rate_agrees_with_a_loop_and_is_antisymmetric() -> None:
    first, second = [some(3, seed=i) for i in range(50)], [some(4, seed=100 + i) for i in range(50)]
    counts = resample(50, draws=500, seed=0)
    wins = []
    for q in range(50):
        here = [margin(a, b) for a in first[q] for b in second[q]]
        wins.append(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in here) / len(here))
    won, lost = win_rate(first, second, counts), win_rate(second, first, counts)
    assert won.rate.value == pytest.approx(sum(wins) / 50)
    assert won.rate.value + lost.rate.value == pytest.approx(1.0)
    assert won.rate.low == pytest.approx(1 - lost.rate.high)
    assert won.ties + won.by_correct + won.by_script + won.by_length == pytest.approx(1.0)
