import math

import pytest

from posttrain.errors import StageError
from posttrain.records import Problem
from posttrain.rewards.terms import (
    TERMS,
    accuracy,
    evaluate_term,
    format_reward,
    language_consistency,
    length,
    overlong,
    repetition,
    total_reward,
)
from posttrain.rl.schedules import scheduled_weight
from tests.rewards.groups import GOOD, PROBLEM, group, sample


def of_lengths(lengths, correct):
    return group(*(sample(correct=bool(c), ids=tuple(range(n))) for n, c in zip(lengths, correct, strict=True)))


def test_length_of_kimi():
    """UT 9.3"""
    assert length(of_lengths([100, 200, 300, 400], [1, 0, 1, 0])) == pytest.approx([0.5, 0, -0.166667, -0.5], abs=1e-6)


def test_length_is_zero_when_all_are_equally_long():
    assert length(of_lengths([7, 7, 7], [1, 0, 1])) == [0.0, 0.0, 0.0]


def test_length_never_pays_a_wrong_answer_and_ignores_the_unit():
    lengths, correct = [5, 9, 30, 31], [0, 0, 1, 0]
    rewards = length(of_lengths(lengths, correct))
    assert all(reward <= 0 for reward, right in zip(rewards, correct, strict=True) if not right)
    scaled = length(of_lengths([10 * n for n in lengths], correct))
    assert scaled == pytest.approx(rewards)


def test_overlong_ramp():
    """UT 5.6, at a thousandth: limit 20480, ramp 4096."""
    ids = {n: tuple(range(n)) for n in (16384, 18432, 20480)}
    rewards = overlong(group(*(sample(ids=i) for i in ids.values()), max_tokens=20480))
    assert rewards == pytest.approx([0.0, -0.5, -1.0])


def test_repetition():
    fresh, twice = tuple(range(40)), tuple(range(20)) * 2
    # `twice` has 21 runs of 20 tokens; the last equals the first.
    rewards = repetition(group(sample(ids=fresh), sample(ids=twice), sample(ids=(1, 2)), sample(finish="repeat")))
    assert rewards == pytest.approx([0.0, -1 / 21, 0.0, -1.0])


def test_accuracy_is_the_score_and_format_needs_the_end_of_turn():
    both = group(sample(), sample(correct=False), sample(finish="length"), sample("\\boxed{7}"))
    assert accuracy(both) == [1.0, 0.0, 1.0, 1.0]
    assert format_reward(both) == [1.0, 1.0, 0.0, 0.0]


def test_language_is_that_of_the_question():
    mixed = sample("<think>the sum 是 four</think>\\boxed{7}")
    assert language_consistency(group(mixed, sample("\\boxed{7}"))) == [0.75, 0.0]
    chinese = Problem("p2", "三加四是多少", "7", "exact", "arithmetic", "file")
    assert language_consistency(group(mixed, problem=chinese)) == [0.25]


def test_language_of_a_skipped_thought_is_consistent():
    skipped = sample("<think>\n\n</think>\n\n\\boxed{7}", mode="no_think")
    assert language_consistency(group(skipped, mode="no_think")) == [1.0]


def test_total_is_the_weighted_sum_and_all_terms_are_reported():
    totals, terms = total_reward(
        group(sample(), sample(correct=False, finish="length")), {"accuracy": 1.0, "format": 0.1, "length": 0.0}
    )
    assert totals == pytest.approx([1.1, 0.0])
    assert terms == {"accuracy": [1.0, 0.0], "format": [1.0, 0.0], "length": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda g: [1.0, math.nan], "got nan for sample 1"),
        (lambda g: [1.0, math.inf], "got inf"),
        (lambda g: [1.0], "got 1 rewards, wanted 2"),
        (lambda g: [1.0, 1 / 0], "crashed: ZeroDivisionError"),
        (lambda g: {}["x"], "crashed: KeyError"),
    ],
)
def test_a_broken_term_stops_the_stage(term, said):
    with pytest.raises(StageError, match=f"reward term 'mine', problem p1: {said}"):
        evaluate_term("mine", term, group(sample(), sample()))


def test_unknown_terms_are_named():
    with pytest.raises(StageError, match="got 'acuracy'"):
        total_reward(group(sample()), {"acuracy": 1.0})


def test_terms_do_not_depend_on_the_order_of_samples():
    samples = [
        sample(ids=tuple(range(30))),
        sample(correct=False),
        sample("<think>然后</think>7"),
        sample(GOOD, ids=(1, 1)),
    ]
    for name, term in TERMS.items():
        assert term(group(*samples)) == list(reversed(term(group(*reversed(samples))))), name


def test_terms_accept_every_problem_they_are_given():
    assert all(len(evaluate_term(name, term, group(sample(""), problem=PROBLEM))) == 1 for name, term in TERMS.items())


def test_a_weight_starts_late_and_rises():
    weights = [scheduled_weight(0.6, start=2, ramp=2, step=step) for step in range(7)]
    assert weights == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.6, 0.6])
    assert [scheduled_weight(0.6, start=1, ramp=0, step=step) for step in range(3)] == [0, 0.6, 0.6]
