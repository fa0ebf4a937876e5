import math
import sys

import pytest

from posttrain.config import ConfigError
from posttrain.errors import StageError
from posttrain.rewards.terms import TERMS
from posttrain.rewards.total import evaluate, make_terms, total_rewards
from tests.rewards.groups import PROBLEM, group, sample


def built_in(*names):
    return make_terms(names, scorers={})


def one_by_one(term):
    return lambda groups: [term(g) for g in groups]


def test_total_is_the_weighted_sum_and_all_terms_are_reported():
    groups = [group(sample(), sample(correct=False, finish="length")), group(sample())]
    weights = {"accuracy": 1.0, "format": 0.1, "length": 0.0}
    (first, terms), (second, _) = total_rewards(groups, weights, built_in(*weights))
    assert first == pytest.approx([1.1, 0.0]) and second == pytest.approx([1.1])
    assert terms == {"accuracy": [1.0, 0.0], "format": [1.0, 0.0], "length": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda g: [1.0, math.nan], "got nan for sample 1"),
        (lambda g: [1.0, math.inf], "got inf"),
        (lambda g: [1.0], "got 1 rewards, wanted 2"),
        (lambda g: 1.0, "got a float, wanted a list"),
        (lambda g: [1.0, None], "got a NoneType for sample 1, wanted a number"),
        (lambda g: [1.0, 1 / 0], "crashed: ZeroDivisionError"),
        (lambda g: {}["x"], "crashed: KeyError"),
    ],
)
def test_a_broken_term_stops_the_stage(term, said):
    with pytest.raises(StageError, match=f"reward term 'mine', problem p1: {said}"):
        evaluate("mine", one_by_one(term), [group(sample(), sample())])


def test_the_problem_at_fault_is_named():
    """One of three prompts: whether the term gives a wrong number or takes the whole batch down."""
    groups = [group(sample(), problem=type(PROBLEM)(f"p{i}", "q", "7", "exact", "d", "s")) for i in range(3)]

    def batched(groups):
        return [[math.log(0.0 if g.problem.id == "p1" else 1.0)] for g in groups]

    with pytest.raises(StageError, match="reward term 'mine', problem p1: crashed: ValueError"):
        evaluate("mine", batched, groups)
    with pytest.raises(StageError, match="reward term 'mine', problem p2: got nan"):
        evaluate("mine", lambda groups: [[math.nan if g.problem.id == "p2" else 0.0] for g in groups], groups)
    with pytest.raises(StageError, match="got rewards for 1 prompts, wanted 3"):
        evaluate("mine", lambda groups: [[0.0]], groups)


def test_unknown_terms_are_named_before_anything_is_sampled():
    with pytest.raises(ConfigError, match="got 'acuracy', wanted one of accuracy, brier, format"):
        built_in("acuracy")


def test_terms_accept_every_problem_they_are_given():
    terms = built_in(*TERMS)
    pair = group(sample(""), sample(""))
    assert all(len(evaluate(name, term, [pair])[0]) == 2 for name, term in terms.items())


def test_a_term_with_a_state_is_handed_in():
    seen = []

    def scorer(groups):
        seen.append(len(groups))
        return [[0.5] * len(g.samples) for g in groups]

    terms = make_terms(["accuracy", "learned"], scorers={"learned": scorer})
    rewarded = total_rewards([group(sample()), group(sample(correct=False))], {"accuracy": 1.0, "learned": 2.0}, terms)
    assert [totals for totals, _ in rewarded] == [[2.0], [1.0]]
    assert seen == [2]  # one call for all prompts
    with pytest.raises(ConfigError, match="this stage has no reward model"):
        built_in("learned")


MINE = """
from mine_helper import HALF

def brevity(group):
    return [HALF / (1 + len(sample.response_ids)) for sample in group.samples]

def broken(group):
    raise AssertionError("not today")

NUMBER = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "mine_terms.py").write_text(MINE)
    (tmp_path / "mine_helper.py").write_text("HALF = 0.5")
    (tmp_path / "mine_broken.py").write_text("1 / 0")
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("mine_terms", "mine_helper", "mine_broken"):
        sys.modules.pop(name, None)


def test_a_users_function_is_found_from_the_project_root(project):
    name = "mine_terms:brevity"
    terms = make_terms(["accuracy", name], scorers={}, root=project)
    ((totals, own),) = total_rewards(
        [group(sample(ids=(1,)), sample(ids=(1, 2, 3)))], {"accuracy": 1.0, name: 2.0}, terms
    )
    assert own[name] == [0.25, 0.125]
    assert totals == [1.5, 1.25]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:brevity", "module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("mine_broken:brevity", "module 'mine_broken' cannot be imported: ZeroDivisionError"),
        ("mine_terms:breivty", "rewards.mine_terms:breivty: got no such name in .*mine_terms.py, wanted a function"),
        ("mine_terms:NUMBER", "got a int in .*mine_terms.py, wanted a function"),
        (":brevity", "rewards.:brevity: module '' cannot be imported"),
    ],
)
def test_a_users_function_that_is_not_there(project, name, said):
    with pytest.raises(ConfigError, match=said):
        make_terms([name], scorers={}, root=project)


def test_a_users_function_that_fails_is_named_with_the_problem(project):
    name = "mine_terms:broken"
    terms = make_terms([name], scorers={}, root=project)
    with pytest.raises(StageError, match=f"reward term '{name}', problem p1: crashed: AssertionError: not today"):
        total_rewards([group(sample()), group(sample())], {name: 1.0}, terms)
