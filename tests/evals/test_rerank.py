"""Choosing one of N: every arm by hand, the published order-statistic formula, and ties."""

import itertools
import math
import random

import numpy as np
import pytest

from posttrain.evals.passk import pass_at_k
from posttrain.evals.rerank import Candidate, accuracies, arms, auroc, chosen_score, rerank


def candidate(answer, correct, **scores):
    return Candidate(answer, correct, scores)


BLOCK = [
    candidate("9", False, prm=0.3, orm=2.0),
    candidate("9", False, prm=0.2, orm=-1.0),
    candidate("8", True, prm=0.6, orm=0.0),
    candidate(None, False, prm=0.5, orm=5.0),
]


def test_every_arm_by_hand():
    assert {name: arm(BLOCK) for name, arm in arms(["prm", "orm"]).items()} == {
        "random": 0.25,
        "majority": 0.0,  # 9 has two votes
        "best_prm": 1.0,
        "best_orm": 0.0,  # the one without an answer
        "weighted_prm": 1.0,  # .6 against .3 + .2
        "weighted_orm": 0.0,  # 2 - 1 against 0
        "oracle": 1.0,
    }


def test_ties_count_as_their_mean():
    tied = [candidate("8", True, s=1.0), candidate("9", False, s=1.0), candidate("7", False, s=1.0)]
    assert {name: arm(tied) for name, arm in arms(["s"]).items()} == {
        **{name: pytest.approx(1 / 3) for name in ("random", "majority", "best_s", "weighted_s")},
        "oracle": 1.0,
    }
    nobody = [candidate(None, False, s=1.0)] * 2
    assert {arm(nobody) for arm in arms(["s"]).values()} == {0.0}


def test_sums_of_equal_weights_tie_in_any_order():
    votes = [candidate("8", True, s=w) for w in (0.1, 0.2, 0.3)] + [candidate("9", False, s=w) for w in (0.3, 0.2, 0.1)]
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert arms(["s"])["weighted_s"](votes) == 0.5


def test_weights_may_be_negative():
    votes = [candidate("8", True, s=-1.0), candidate("9", False, s=-2.0)]
    assert arms(["s"])["weighted_s"](votes) == 1.0


def test_no_arm_looks_at_the_order():
    for order in itertools.permutations(BLOCK):
        for name, arm in arms(["prm", "orm"]).items():
            assert arm(order) == arm(BLOCK), name


def test_blocks_average_to_the_order_statistic():
    """UT 1.4: gold in the order of the proxy [1, 2, 3, 0], n = 2: 4/3, here with gold/3 as the probability drawn."""
    gold = (1, 2, 3, 0)
    found = []
    for order in itertools.permutations(range(4)):
        # A candidate cannot be a third right, so each level of gold is a threshold: gold = sum_t [gold >= t].
        pools = [[[candidate("x", gold[i] >= t, s=float(i)) for i in order]] for t in (1, 2, 3)]
        found.append(sum(accuracies(pool, arms(["s"])["best_s"], size=2)[0] for pool in pools))
    assert np.mean(found) == pytest.approx(4 / 3)
    closed = sum(math.comb(i - 1, 1) / math.comb(4, 2) * g for i, g in enumerate(gold, start=1))
    assert closed == pytest.approx(4 / 3)


def test_the_oracle_averages_to_pass_at_k():
    pool = [candidate(str(i), i < 3, s=0.0) for i in range(8)]
    rng = random.Random(0)
    draws = [accuracies([rng.sample(pool, 8)], arms([])["oracle"], size=2)[0] for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(float(pass_at_k([8], [3], k=2)[0]), abs=0.01)


def test_a_table_has_every_arm_at_every_n():
    rng = random.Random(1)
    pools = [
        [candidate(str(rng.randrange(3)), rng.random() < 0.3, prm=rng.random()) for _ in range(4)] for _ in range(20)
    ]
    table = rerank(pools, scores=["prm"], at=[1, 4], draws=200, seed=0)
    assert set(table) == {"random", "majority", "best_prm", "weighted_prm", "oracle"}
    for name in ("random", "best_prm", "oracle"):  # one sample leaves nothing to choose
        assert table[name][1].accuracy.value == pytest.approx(table["random"][1].accuracy.value)
    assert table["oracle"][4].accuracy.value >= table["best_prm"][4].accuracy.value
    assert table["majority"][4].over_majority.value == table["majority"][4].over_majority.high == 0.0
    assert table["best_prm"][4].score > table["best_prm"][1].score
    assert table["random"][1].score is None
    assert (
        table["best_prm"][4].accuracy.low <= table["best_prm"][4].accuracy.value <= table["best_prm"][4].accuracy.high
    )
    with pytest.raises(ValueError, match="got N=3 with a pool of 4 samples, wanted a divisor"):
        rerank(pools, scores=["prm"], at=[3], draws=10, seed=0)


def test_the_score_of_what_is_chosen():
    assert chosen_score([BLOCK], "prm", size=2) == pytest.approx((0.3 + 0.6) / 2)


def test_auroc_by_hand_and_against_every_pair():
    found = auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False], [0, 1, 0, 1], draws=50, seed=0)
    assert found.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    rng = random.Random(0)
    score = [rng.randrange(5) for _ in range(60)]
    positive = [rng.random() < 0.1 + s / 8 for s in score]
    question = [rng.randrange(9) for _ in score]
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, up in zip(score, positive, strict=True)
        for b, low in zip(score, positive, strict=True)
        if up and not low
    ]
    found = auroc(score, positive, question, draws=400, seed=0)
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.low < found.value < found.high
    assert auroc([1.0, 2.0], [True, True], [0, 1], draws=5, seed=0) is None


def test_auroc_draws_are_those_of_resampled_questions():
    score, positive, question = [3.0, 1.0, 2.0, 2.0], [True, False, True, False], [0, 0, 1, 1]
    found = auroc(score, positive, question, draws=2000, seed=0)
    # Both from question 0: 1; both from question 1: a tie, .5; one of each: (1 + 1 + .5 + 1) / 4.
    assert (found.low, found.value, found.high) == (0.5, pytest.approx(0.875), 1.0)
