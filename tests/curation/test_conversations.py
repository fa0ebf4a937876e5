"""Training examples: which text asks for which mode, and where the thinking comes from."""

import pytest

from posttrain.chat.template import requested_mode
from posttrain.config import Habits
from posttrain.curation.conversations import (
    NO_THINK_FLAGS,
    THINK_FLAGS,
    no_think_example,
    think_example,
    trace_conversations,
)
from posttrain.records import DataError, Problem

HABITS = Habits(
    careful=1.0,
    hasty=0.0,
    direct=0.0,
    guess=0.0,
    slip=0.0,
    check=0.0,
    mistake=0.0,
    detour=0.0,
    remarks=0.0,
    second_script=0.0,
)
GYM = Problem("g", "4 - 1 =", "3", "gym", "d", "s", None, {"family": "chain_sum", "expression": "4 - 1"})
USER = Problem("u", "How many?", "7", "exact", "d", "rows.jsonl", None, {"solution": "Count them: 7."})
BARE = Problem("b", "How many?", "7", "exact", "d", "rows.jsonl")


def test_flags_ask_for_the_mode_they_stand_for() -> None:
    for flag in THINK_FLAGS:
        assert requested_mode(think_example(GYM, "x", "3", name="n", flag=flag).messages[:1]) == "think"
    for flag in NO_THINK_FLAGS:
        # The empty flag is the hard switch, which no text asks for.
        asked = requested_mode(no_think_example(GYM, "3", name="n", flag=flag).messages[:1])
        assert asked == ("no_think" if flag else "think")


def test_traces_come_from_the_generator_and_from_the_users_solutions() -> None:
    traces = trace_conversations([GYM, USER, BARE], HABITS, per_problem=2, seed=1)
    assert [trace.id for trace in traces] == ["g-trace0", "g-trace1", "u-solution"]
    assert traces[0].messages[1].thinking == "Step by step: 4-1=3. So the answer is 3."
    assert traces[2].messages[1].thinking == "Count them: 7."
    assert traces[2].messages[1].content == "\\boxed{7}"


def test_no_solution_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"fields\.solution"):
        trace_conversations([BARE], HABITS, per_problem=1, seed=1)
