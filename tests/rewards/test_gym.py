import inspect
import re

import pytest
import reasoning_gym

from posttrain.records import WRONG, Problem
from posttrain.rewards import gym


def test_part_payments_of_the_gym_do_not_count(monkeypatch):
    monkeypatch.setattr(gym, "_gym_scorer", lambda family: lambda answer, entry: 0.99)
    assert gym.gym_verdict(Problem("p", "1 + 1", "2", "gym", "d", "gym:chain_sum"), "7") == WRONG


def test_a_crash_of_the_scorer_is_no_verdict(monkeypatch):
    def crash(answer, entry):
        raise ZeroDivisionError

    monkeypatch.setattr(gym, "_gym_scorer", lambda family: crash)
    with pytest.raises(ZeroDivisionError):
        gym.gym_verdict(Problem("p", "1 + 1", "2", "gym", "d", "gym:chain_sum"), "7")


def test_every_gym_scorer_that_evaluates_answers_is_refused():
    """By source: a scorer that mentions eval or parse_expr, itself or in the helpers of its class."""
    evaluating = re.compile(r"(?<![\w.])eval\(answer|parse_expr\((?:user_)?answer")
    found = {
        name
        for name, (dataset, _) in reasoning_gym.factory.DATASETS.items()
        if evaluating.search(inspect.getsource(dataset))
    }
    assert found == gym.EVALUATES_ANSWERS
