import dataclasses

import pytest

from posttrain.records import Problem, Verdict
from posttrain.rewards.terms import (
    TERMS,
    accuracy,
    brier,
    format_reward,
    language_consistency,
    language_identity,
    length,
    length_difficulty,
    overlong,
    repetition,
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
    """UT 5.6: limit 20480, of which the last 4096 are the ramp; any limit has a ramp of the same share."""
    lengths = [0, 16384, 18432, 20480, 30000]
    rewards = overlong(group(*(sample(ids=tuple(range(n))) for n in lengths), max_tokens=20480))
    assert rewards == [0.0, 0.0, -0.5, -1.0, -1.0]
    small = overlong(group(*(sample(ids=tuple(range(n))) for n in (128, 144, 160)), max_tokens=160))
    assert small == pytest.approx([0.0, -0.5, -1.0])


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


def test_a_language_that_shares_the_script_is_told_by_the_identifier():
    asked = Problem("p3", "How many apples are left when two are taken away?", "7", "exact", "arithmetic", "file")
    english, german = "First we add the two numbers together.", "Zuerst addieren wir die beiden Zahlen."
    samples = [sample(f"<think>{text}</think>\\boxed{{7}}") for text in (english, german, f"{english} {german}")]
    both = group(*samples, problem=asked)
    assert language_consistency(both) == [1.0, 1.0, 1.0]
    assert language_identity(both) == pytest.approx([1.0, 0.0, 7 / 13])


def test_what_the_identifier_cannot_tell_is_neither_paid_nor_punished():
    asked = Problem("p3", "How many apples are left when two are taken away?", "7", "exact", "arithmetic", "file")
    english, german = "First we add the two numbers together.", "Zuerst addieren wir die beiden Zahlen."
    thoughts = ["so 3 + 4", english, german, ""]
    samples = [sample(f"<think>{text}</think>\\boxed{{7}}") for text in thoughts]
    # The short one gets the mean of 1, 0 and 0; an empty thought has no words of any language.
    assert language_identity(group(*samples, problem=asked)) == pytest.approx([1 / 3, 1.0, 0.0, 0.0])
    no_language = Problem("p4", "3 + 4 = ?", "7", "exact", "arithmetic", "file")
    assert language_identity(group(*samples, problem=no_language)) == [0.0] * 4
    skipped = sample("<think>\n\n</think>\n\n\\boxed{7}", mode="no_think")
    assert language_identity(group(skipped, mode="no_think", problem=asked)) == [1.0]


def test_length_and_difficulty_by_hand():
    """Limit 100: the target is 50 tokens at pass rate 0, 10 at 1 and 30 at 0.5."""
    lengths, correct = [0, 15, 30, 60, 100], [1, 1, 1, 1, 1]
    graded = {rate: dataclasses.replace(PROBLEM, pass_rate=rate) for rate in (0.0, 0.5, 1.0)}
    rewards = {
        rate: length_difficulty(group(*of_lengths(lengths, correct).samples, problem=problem))
        for rate, problem in graded.items()
    }
    assert rewards[0.5] == pytest.approx([0.5, 0.25, 0.0, -0.5, -0.5])
    assert rewards[0.0] == pytest.approx([0.5, 0.35, 0.2, -0.1, -0.5])
    assert rewards[1.0] == pytest.approx([0.5, -0.25, -0.5, -0.5, -0.5])


def test_length_and_difficulty_pays_no_wrong_answer_and_ignores_the_group():
    lengths, correct = [0, 15, 30, 40, 100], [0, 1, 0, 0, 1]
    rewards = length_difficulty(of_lengths(lengths, correct))
    assert rewards == pytest.approx([0.0, 0.25, 0.0, -1 / 6, -0.5])
    assert all(-0.5 <= reward <= 0.5 for reward in rewards)
    alone = [length_difficulty(of_lengths([n], [c]))[0] for n, c in zip(lengths, correct, strict=True)]
    assert alone == rewards


def test_length_and_difficulty_needs_a_graded_problem():
    with pytest.raises(ValueError, match="no pass_rate, wanted one from stage grade"):
        length_difficulty(group(sample(), problem=dataclasses.replace(PROBLEM, pass_rate=None)))


def answers(*texts, unverified=0):
    """7 is right; "" has no answer; then so many whose verifier crashed."""
    made = [sample(f"<think>so</think>\\boxed{{{t}}}" if t else "<think>so</think>", correct=t == "7") for t in texts]
    lost = [dataclasses.replace(sample(), verdict=Verdict(0.0, "unverified")) for _ in range(unverified)]
    return group(*made, *lost)


def test_brier_by_hand():
    """Three others each: two right ones have 1 of them, the 8 and the one without an answer have none."""
    assert brier(answers("7", "7", "8", "")) == pytest.approx([-4 / 9, -4 / 9, 0.0, 0.0])
    # Wrong in unison: 2 of 3 others agree; nobody believes in the right one.
    assert brier(answers("7", "8", "8", "8")) == pytest.approx([-1.0, -4 / 9, -4 / 9, -4 / 9])
    assert brier(answers("7", "7", "7")) == [0.0, 0.0, 0.0]
    assert brier(answers("8", "8", "8")) == [-1.0, -1.0, -1.0]


def test_brier_asks_the_others_whom_somebody_verified():
    assert brier(answers("7", "8", "8", unverified=2)) == pytest.approx([-1.0, -0.25, -0.25, 0.0, 0.0])
    assert brier(answers("7", unverified=3)) == [0.0] * 4
    with pytest.raises(ValueError, match="got a group of 1 sample, wanted at least 2"):
        brier(answers("7"))


def test_brier_takes_right_answers_for_the_same_and_open_thoughts_for_none():
    spelled = group(sample("<think>so</think>\\boxed{7}"), sample("<think>so</think>\\boxed{7.0}"))
    assert brier(spelled) == [0.0, 0.0]
    open_thought = sample("<think>so \\boxed{8}", correct=False)
    assert brier(group(sample("<think>so</think>\\boxed{8}", correct=False), open_thought)) == [0.0, 0.0]


def test_accuracy_and_brier_are_the_reward_of_the_specification():
    """algorithms.md 11: 1[correct] - (c - 1[correct])^2, so a right answer is never worth less than a wrong one."""
    mixed = answers("7", "7", "8", "9", "8", "")
    rewards = [a + b for a, b in zip(accuracy(mixed), brier(mixed), strict=True)]
    assert rewards == pytest.approx([1 - 0.64, 1 - 0.64, -0.04, 0.0, -0.04, 0.0])
    assert min(rewards[:2]) >= max(rewards[2:])
    lone = answers("7", "8", "9")
    assert [a + b for a, b in zip(accuracy(lone), brier(lone), strict=True)] == [0.0, 0.0, 0.0]


def test_terms_do_not_depend_on_the_order_of_samples():
    samples = [
        sample(ids=tuple(range(30))),
        sample(correct=False),
        sample("<think>然后</think>7"),
        sample(GOOD, ids=(1, 1)),
    ]
    for name, term in TERMS.items():
        assert term(group(*samples)) == list(reversed(term(group(*reversed(samples))))), name


def test_a_weight_starts_late_and_rises():
    weights = [scheduled_weight(0.6, start=2, ramp=2, step=step) for step in range(7)]
    assert weights == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.6, 0.6])
    assert [scheduled_weight(0.6, start=1, ramp=0, step=step) for step in range(3)] == [0, 0.6, 0.6]
