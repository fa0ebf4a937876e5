import itertools

import numpy as np
import pytest

from posttrain.evals.passk import majority_vote, pass_at_k


def test_numbers_of_the_specification() -> None:
    """algorithms.md 12.1: 1 - C(7,5)/C(10,5) = 1 - 21/252; 1 - C(3,2)/C(4,2) = 1 - 3/6."""
    assert pass_at_k(10, 3, k=5) == pytest.approx([0.916667], abs=1e-6)
    assert pass_at_k(4, 1, k=2) == pytest.approx([0.5])
    assert 1 - (1 - 0.3) ** 5 == pytest.approx(0.831930)  # the plug-in estimate, which is biased low
    assert pass_at_k(10, 3, k=5)[0] > 0.831930


def test_equals_the_share_of_subsets_with_a_right_sample() -> None:
    """Independent: enumerate all subsets of size k."""
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            flags = [i < c for i in range(n)]
            hits = [any(subset) for subset in itertools.combinations(flags, k)]
            assert pass_at_k(n, c, k=k)[0] == pytest.approx(np.mean(hits))


def test_monotone_in_k_and_first_is_the_mean() -> None:
    values = [pass_at_k(8, 3, k=k)[0] for k in range(1, 9)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(3 / 8)
    assert values[-1] == 1.0


def test_mixed_questions_keep_their_places() -> None:
    together = pass_at_k([4, 10, 4], [1, 3, 0], k=2)
    alone = [pass_at_k(n, c, k=2)[0] for n, c in ((4, 1), (10, 3), (4, 0))]
    assert together.tolist() == alone


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 5), (4, 5, 2), (4, -1, 2), (4, 1, 0)])
def test_refuses_what_has_no_unbiased_estimate(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="got"):
        pass_at_k(samples, correct, k=k)


def test_majority_ignores_missing_answers() -> None:
    assert majority_vote([None, None, "7"], seed=0, question_id="q") == "7"
    assert majority_vote([None, None], seed=0, question_id="q") is None
    assert majority_vote(["3", "7", "7", "3", "7"], seed=0, question_id="q") == "7"


def test_ties_are_seeded_fair_and_blind_to_order() -> None:
    winners = [majority_vote(["3", "7"], seed=1, question_id=f"q{i}") for i in range(400)]
    assert winners == [majority_vote(["7", "3"], seed=1, question_id=f"q{i}") for i in range(400)]
    assert 150 < winners.count("3") < 250
    assert winners != [majority_vote(["3", "7"], seed=2, question_id=f"q{i}") for i in range(400)]
