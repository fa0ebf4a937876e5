"""Steps: exact token ends, and the default world's checker on traces written by hand and by the world itself."""

import random

import pytest

from posttrain.chat.template import TURN_END, decode_ids, encode_text
from posttrain.curation.solvers import SOLVERS
from posttrain.curation.tokenizer import train_tokenizer
from posttrain.curation.traces import write_trace
from posttrain.records import DataError, Problem
from posttrain.rewards.steps import AGGREGATIONS, check_steps, checked_steps, split_steps, split_text
from tests.chat.tokenizer import build_tokenizer
from tests.curation.test_solvers import problems
from tests.curation.test_traces import habits

CHAIN = Problem(
    "p",
    "State the final answer to the following arithmetic problem: 4 - 1 - 7 + 7 + 5 =",
    "8",
    "exact",
    "d",
    "s",
    None,
    {"family": "chain_sum", "expression": "4 - 1 - 7 + 7 + 5"},
)
GCD = Problem(
    "g", "Find the GCD of these numbers: 52, 21.", "1", "exact", "d", "s", None, {"family": "gcd", "numbers": [52, 21]}
)
EQUATION = Problem(
    "e",
    "Determine the value of b that satisfies: 5*b + 6 = 26",
    "4",
    "exact",
    "d",
    "s",
    None,
    {"family": "simple_equations", "equation": "5*b + 6 = 26"},
)
WAY = "4-1=3, then 3-7=-4, then -4+7=3, then 3+5=8."
TOKENIZER = build_tokenizer()


def respond(working, answer="8"):
    return f"<think>\n{working}\n</think>\n\n\\boxed{{{answer}}}{TURN_END}"


def judged(text, problem=CHAIN, tokenizer=TOKENIZER):
    """(last characters of each step, whether it is right)."""
    steps = split_steps(tokenizer, encode_text(tokenizer, text))
    return [(step.text.strip(), right) for step, right in zip(steps, check_steps(problem, steps), strict=True)]


def verdicts(working, answer="8", problem=CHAIN):
    return [right for _, right in judged(respond(working, answer), problem)]


def test_a_careful_trace_by_hand():
    rows = judged(respond(f"Step by step: {WAY} So the answer is 8."))
    assert [text for text, _ in rows] == [
        "<think>\nStep by step: 4-1=3,",
        "then 3-7=-4,",
        "then -4+7=3,",
        "then 3+5=8.",
        "So the answer is 8.",
        f"</think>\n\n\\boxed{{8}}{TURN_END}",
    ]
    assert all(right for _, right in rows)


def test_leaps_count_as_the_single_operations_do():
    assert verdicts("Quickly: 4-1-7=-4, then -4+7+5=8. So the answer is 8.") == [True] * 4
    assert verdicts("Quickly: 4-1=3, then 3-7+7+5=8. So the answer is 8.") == [True] * 4


def test_a_slip_spoils_what_builds_on_it_until_the_work_starts_over():
    slip = "Quickly: 4-1-7=-3, then -3+7+5=9."
    assert verdicts(f"{slip} So the answer is 9.", "9") == [False] * 4
    assert verdicts(f"{slip} Check again: {WAY} Different. So the answer is 8.") == [
        *(False, False),
        *(True, True, True, True),
        *(True, True, True),
    ]


def test_true_arithmetic_that_skips_a_term_or_turns_a_sign_is_wrong():
    assert verdicts("Step by step: 4-1=3, then 3+7=10. So the answer is 10.", "10") == [True, False, False, False]
    assert verdicts("Step by step: 4+1=5. So the answer is 5.", "5") == [False] * 3


def test_a_claim_needs_the_whole_way():
    assert verdicts("Step by step: 4-1=3. So the answer is 8.") == [True, False, False]
    assert verdicts(f"Step by step: {WAY} So the answer is 9.", "8") == [True] * 4 + [False, True]
    assert verdicts(f"Step by step: {WAY} So the answer is 8.", "9") == [True] * 5 + [False]


def test_a_detour_must_be_true_and_of_the_questions_numbers():
    for sum_, right in (("4+7=11", True), ("4+7=12", False), ("4+9=13", False), ("4*7=28", False)):
        rows = judged(respond(f"Step by step: maybe {sum_}, no, start over. {WAY} So the answer is 8."))
        assert rows[0][1] is right
        assert rows[1] == ("no, start over. 4-1=3,", True)
        assert all(ok for _, ok in rows[1:])


def test_same_and_different_say_whether_the_last_two_times_agree():
    wrong = WAY.replace("=8", "=9")
    assert verdicts(f"Step by step: {WAY} Check again: {WAY} Same. So the answer is 8.")[-3:] == [True] * 3
    assert verdicts(f"Step by step: {WAY} Check again: {WAY} Different. So the answer is 8.")[-3] is False
    assert verdicts(f"Step by step: {wrong} Check again: {WAY} Same. So the answer is 8.")[-3] is False
    assert verdicts(f"Step by step: {WAY} Same. So the answer is 8.")[-3] is False
    third = f"Step by step: {wrong} Check again: {WAY} Different. Step by step: {WAY} So the answer is 8."
    assert verdicts(third) == [True] * 3 + [False] + [True] * 11


def test_the_second_script_says_the_same():
    english = f"Step by step: maybe 4+7=11, no, start over. {WAY} Check again: {WAY} Same. So the answer is 8."
    words = {"Step by step:": "一步一步:", "maybe": "也许", "no, start over.": "不对重来.", "then": "然后"}
    words |= {"Check again:": "再检查:", "Same.": "一样.", "So the answer is": "所以答案是"}
    chinese = english
    for word, other in words.items():
        chinese = chinese.replace(word, other)
    assert verdicts(chinese) == verdicts(english) == [True] * 12
    assert verdicts(chinese.replace("一样.", "不一样."))[-3] is False


def test_remarks_are_no_steps():
    plain, long = (
        verdicts(f"Step by step: {WAY} So the answer is 8.{end}") for end in ("", " That looks right. 没有遗漏.")
    )
    assert plain == long
    assert verdicts(f"That looks right. Step by step: {WAY} So the answer is 8.") == plain


def test_the_other_families():
    euclid = "Step by step: 52%21=10, then 21%10=1, then 10%1=0, then gcd(1,0)=1. So the answer is 1."
    assert verdicts(euclid, "1", GCD) == [True] * 6
    assert verdicts(euclid.replace("52%21=10", "52%21=9"), "1", GCD)[:4] == [False] * 4
    assert verdicts("Quickly: gcd(52,21)=1. So the answer is 1.", "1", GCD) == [True] * 3
    assert verdicts("Step by step: 26-6=20, then 20/5=4. So the answer is 4.", "4", EQUATION) == [True] * 4
    assert verdicts("Quickly: (26-6)/5=4. So the answer is 4.", "4", EQUATION) == [True] * 3
    assert verdicts("Quickly: (26-6)/5=5. So the answer is 5.", "5", EQUATION) == [False] * 3


def test_an_answer_that_stands_alone_is_right_when_it_is_the_problems():
    assert (verdicts("", "8"), verdicts("", "7")) == ([True], [False])
    assert judged(f"\\boxed{{8}}{TURN_END}") == [(f"\\boxed{{8}}{TURN_END}", False)]


@pytest.mark.parametrize(
    "text", ["4-1=", "4-1=3=3.", "=.", "4-1=" + "9" * 5000 + ".", "maybe " + "9" * 5000 + "+4=5.", "x"]
)
def test_what_no_step_should_look_like_is_wrong(text):
    assert [right for _, right in judged(f"<think>\n{text}")] == [False]


def test_a_response_that_breaks_off_ends_with_an_unfinished_step():
    ids = encode_text(TOKENIZER, "<think>\nStep by step: 4-1=3, then 3-")
    assert [step.kind for step in split_steps(TOKENIZER, ids)] == ["equation", "unfinished"]
    assert [step.reward for step in checked_steps(TOKENIZER, CHAIN, ids)] == [1.0, 0.0]
    assert split_steps(TOKENIZER, []) == []


@pytest.mark.parametrize("kind", ["bytes", "world"])
def test_ends_are_exact_whatever_the_tokenizer(kind):
    text = respond(f"一步一步: 也许 4+7=11, 不对重来. {WAY.replace('then', '然后')} 所以答案是 8. 看起来对.")
    tokenizer = TOKENIZER if kind == "bytes" else train_tokenizer([text] * 3, vocab_size=400)
    ids = encode_text(tokenizer, text)
    steps = split_steps(tokenizer, ids)
    assert "".join(step.text for step in steps) == text
    start = 0
    for step in steps:
        assert decode_ids(tokenizer, ids[start : step.end + 1]) == step.text
        start = step.end + 1
    assert start == len(ids)


def test_a_prefix_up_to_a_step_has_the_same_steps():
    ids = encode_text(TOKENIZER, respond(f"Quickly: 4-1-7=-3, then -3+7+5=9. Check again: {WAY} Different. Same."))
    whole = checked_steps(TOKENIZER, CHAIN, ids)
    for number, step in enumerate(whole, start=1):
        assert checked_steps(TOKENIZER, CHAIN, ids[: step.end + 1]) == whole[:number]


@pytest.mark.parametrize("family", sorted(SOLVERS))
def test_everything_the_world_writes_without_slips_is_right_but_for_the_planted_mistakes(family):
    rng = random.Random(1)
    kinds = {"detour": 0.5, "check": 0.5, "remarks": 0.5, "second_script": 0.5}
    for problem, _ in problems(family, size=60):
        for mistake in (0.0, 1.0):
            mix = habits(careful=0.5, hasty=0.5, mistake=mistake, **kinds)
            trace = write_trace(problem, mix, rng)
            rows = judged(respond(trace.working, trace.answer), problem)
            wrong = [text for text, right in rows if not right]
            mended = "Different." in trace.working or "不一样." in trace.working
            assert len(wrong) == mended, (trace.working, wrong)
            assert rows[-1][1]


def test_what_the_world_writes_with_slips_has_a_right_end_only_with_the_right_answer():
    rng = random.Random(2)
    for problem, _ in problems("chain_sum", size=200):
        trace = write_trace(problem, habits(careful=0.0, hasty=1.0, slip=0.4), rng)
        marks = [right for _, right in judged(respond(trace.working, trace.answer), problem)]
        assert all(marks) <= (trace.answer == problem.answer)
        assert marks[-1] is all(marks)
        if trace.answer != problem.answer:
            assert not all(marks[:-2])


def test_text_ends_are_a_partition_for_any_text():
    rng = random.Random(0)
    pieces = ("4-1=3", ", ", ". ", "</think>", "Same", "So the answer is 8", "\n", "一样", "then ", "=", "gcd(1,0)")
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        ends = [end for end, _ in split_text(text)]
        assert ends == sorted(set(ends)) and (ends[-1:] == [len(text)] if text else ends == [])


def test_a_problem_of_another_world_is_refused():
    with pytest.raises(DataError, match="problem q: got family None, wanted one that the step checker can solve"):
        check_steps(Problem("q", "?", "1", "exact", "d", "s"), [])


def test_aggregation_by_hand():
    """UT 13.2: steps [.9, .5, .8]."""
    values = {name: aggregate([0.9, 0.5, 0.8]) for name, aggregate in AGGREGATIONS.items()}
    assert values == {
        "min": 0.5,
        "product": pytest.approx(0.36),
        "mean": pytest.approx(0.7333, abs=1e-4),
        "last": 0.8,
    }
    for name in ("min", "product", "mean"):
        assert AGGREGATIONS[name]([0.8, 0.9, 0.5]) == pytest.approx(values[name])
