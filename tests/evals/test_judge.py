import itertools
import random

import pytest

from posttrain.evals.intervals import resample
from posttrain.evals.judge import Judged, margin, order, rule_pairs, shortest_pairs, win_rate


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


def test_every_two_that_do_not_tie_are_a_pair() -> None:
    samples = [Judged(True, True, 5), Judged(False, True, 5), Judged(True, True, 5), Judged(True, True, 10)]
    assert rule_pairs(samples) == [(0, 1, 4.0), (0, 3, 0.5), (2, 1, 4.0), (3, 1, 4.0 - 0.5), (2, 3, 0.5)]
    for better, worse, gap in rule_pairs(some(12)):
        assert gap == margin(some(12)[better], some(12)[worse]) > 0


def test_short_over_long() -> None:
    """UT 9.6: right of 100, 140, 160 and wrong of 90, 300 tokens: 100 over 160 (1.6 times) and over the wrong 300."""
    samples = [Judged(True, True, n) for n in (140, 100, 160)] + [Judged(False, True, n) for n in (90, 300)]
    assert [(samples[b].tokens, samples[w].tokens) for b, w, _ in shortest_pairs(samples)] == [(100, 160), (100, 300)]
    assert [gap for _, _, gap in shortest_pairs(samples)] == pytest.approx([1 - 100 / 160, 1 - 100 / 300])


def test_short_over_long_at_its_bounds() -> None:
    right, wrong = (lambda n: Judged(True, False, n)), (lambda n: Judged(False, True, n))
    assert shortest_pairs([wrong(5), wrong(50)]) == []
    # Exactly 1.5 times is not longer than that, and an equally long wrong answer is not longer.
    assert shortest_pairs([right(10), right(15), wrong(10)]) == []
    assert [(b, w) for b, w, _ in shortest_pairs([right(16), wrong(11), right(10)])] == [(2, 0), (2, 1)]


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
