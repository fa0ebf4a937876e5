"""Levers: the same work with and without, and predictions by hand."""

import pytest
import torch

from benchmarks.__main__ import with_others
from benchmarks.arithmetic import Shape, executed_operations
from benchmarks.lever import changed, in_turns, is_wanted
from benchmarks.levers import Levers, cut, pairs_of
from benchmarks.levers_page import levers_section
from benchmarks.levers_rollouts import RolloutLevers
from benchmarks.profile import BETWEEN, REST, heap_in_use, kind_of, seconds_by_kind
from benchmarks.side import BenchmarkError
from benchmarks.world import Group, shape_of
from posttrain.engine import packing
from posttrain.engine.policy import load_policy
from posttrain.evals.inputs import Source


@pytest.fixture
def levers(work):
    return Levers(load_policy(work.folder, precision="fp32"), shape_of(work.folder)[0], work.groups)


def test_every_lever_runs_with_and_without_and_is_not_predicted_to_lose(levers, work):
    of_rollouts = RolloutLevers(levers._policy, levers._shape, work.groups)
    found = [(name, make()) for part in (levers, of_rollouts) for name, make in part.named()]
    assert len({name for name, _ in found}) == len(found) >= 11
    for name, lever in found:
        seconds, without = in_turns(lever, pairs=1)
        assert len(seconds) == len(without) == 1
        assert lever.predicted is None or lever.predicted >= 1.0, name


def test_in_bf16_there_are_levers_of_its_own(work, levers):
    policy, shape = load_policy(work.folder, precision="bf16"), shape_of(work.folder)[0]
    parts = (Levers(policy, shape, work.groups), RolloutLevers(policy, shape, work.groups))
    known = {name for part in (levers, RolloutLevers(levers._policy, shape, work.groups)) for name, _ in part.named()}
    own = [make() for part in parts for name, make in part.named() if name not in known]
    assert len(own) == 5
    for lever in own:
        assert [len(taken) for taken in in_turns(lever, pairs=1)] == [1, 1]


def test_lean_feed_forward_parts_keep_less(levers):
    kept, without = levers.lean_gates().kept
    assert 0 < kept < without


def test_a_shelved_reference_keeps_nothing_between_two_readings(levers):
    kept, without = levers.shelved_reference().kept
    weights = sum(p.nbytes for p in levers._policy.model.parameters())
    assert kept < weights / 4 < weights <= without


def test_operations_of_shared_and_repeated_prompts_by_hand(levers, work):
    """4 groups of 2: prompts of 6 tokens, responses of 4 to 8."""
    responses = sum(len(r) for group in work.groups for r in group.responses)
    shape = Shape(body=1, vocabulary=0, hidden=0, layers=0, attention_width=0)
    levers._shape = shape
    assert levers._operations(levers._shared) == 2 * (4 * 6 + responses)
    assert levers._operations(levers._apart) == 2 * (8 * 6 + responses)
    assert levers.one_prompt().predicted == (48 + responses) / (24 + responses)
    assert levers.one_prompt_of_pair().predicted == (48 + responses) / (24 + responses)


def test_pairs_are_neighbours_of_a_group_with_a_prompt_that_no_other_pair_has():
    (first, second) = pairs_of([Group((1, 2, 3), ((7,), (8, 8), (9,), (6,), (5,)))])
    assert first == (((1, 2, 3), (7,)), ((1, 2, 3), (8, 8)))
    assert second == (((3, 1, 2), (9,)), ((3, 1, 2), (6,)))


def test_operations_are_counted_over_what_is_executed():
    shape = Shape(body=10, vocabulary=7, hidden=3, layers=2, attention_width=5)
    # 2 per parameter and token, 4 per layer, width and pair, 2 per entry of the head.
    assert executed_operations(shape, tokens=4, pairs=6, scored=1) == 2 * 10 * 4 + 4 * 2 * 5 * 6 + 2 * 7 * 3


def test_micro_batches_in_order_stay_within_their_tokens(monkeypatch):
    monkeypatch.setattr("benchmarks.levers.TOKENS", 10)
    made = [((1,) * 3, (2,) * n) for n in (2, 2, 3, 9, 1)]
    assert [len(part) for part in cut(made)] == [2, 1, 1, 1]


def test_a_constant_is_put_back(levers):
    before = packing.LIKE
    with pytest.raises(KeyError), changed(packing, "LIKE", 0.0):
        raise KeyError(packing.LIKE)
    assert packing.LIKE == before


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::native_layer_norm_backward", "norms"),
        ("aten::_log_softmax", "softmax and loss"),
        ("aten::copy_", "copies and gathers"),
        ("aten::index_select", "copies and gathers"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::add_", "elementwise"),
        ("aten::silu_backward", "elementwise"),
        ("aten::view", REST),
    ],
)
def test_operators_by_kind(operator, kind):
    assert kind_of(operator) == kind


def test_the_kinds_make_up_the_whole():
    a = torch.randn(200, 200)
    seconds = seconds_by_kind(lambda: [a @ a for _ in range(50)])
    assert max(seconds, key=lambda kind: seconds[kind]) in ("matrix products", BETWEEN)
    assert seconds["matrix products"] > 0 and seconds["attention"] == 0


def test_levers_by_a_part_of_their_name_take_the_place_of_those_measured_before():
    assert is_wanted("norms with few passes", ["norms", "head"]) and is_wanted("any", [])
    assert not is_wanted("allocator", ["norms", "head"])
    before = Source("x.json", {"levers": [{"name": "a", "seconds": 1}, {"name": "b", "seconds": 2}], "profile": 1})
    found = with_others(before, {"levers": [{"name": "b", "seconds": 3}, {"name": "c", "seconds": 4}], "profile": 5})
    assert [(lever["name"], lever["seconds"]) for lever in found["levers"]] == [("a", 1), ("b", 3), ("c", 4)]
    assert found["profile"] == 5
    assert with_others(None, {"levers": [{"name": "c"}]}) == {"levers": [{"name": "c"}]}
    with pytest.raises(BenchmarkError, match="no lever has such a name"):
        with_others(before, {"levers": []})


def test_memory_in_use_counts_a_tensor_until_it_is_freed():
    before = heap_in_use()
    block = torch.zeros(2**20)
    assert 2**22 <= heap_in_use() - before < 2**22 + 2**16
    del block
    assert abs(heap_in_use() - before) < 2**16


def test_the_section_says_what_was_measured_and_sorts_the_profile():
    row = {"name": "a lever", "instead": "without", "predicted": 1.5, "own_cost": 11.2, "seconds": [1.0, 3.0, 2.0]}
    row |= {
        "kept": [3 * 2**20, 5 * 2**20],
        "seconds_without": [4.0, 4.0, 5.0],
        "ratio": {"value": 2.0, "low": 1.3, "high": 4.0},
    }
    size = {"prompts": 3, "group": 2, "prompt_tokens": 5, "response_tokens": 7}
    profile = {"attention": 1.0, "matrix products": 3.0, "optimizer": 0.0}
    text = levers_section(
        Source("x.json", {"levers": [row], "profile": profile, "model": "micro", "precision": "fp32", "size": size})
    )
    assert "| a lever | without | 1.50 | **2.00** [1.30, 4.00] | 2 / 4; 11 s once; 3 / 5 MiB kept |" in text
    assert text.index("| matrix products | 3 | 75 |") < text.index("| attention | 1 | 25 |")
    assert "optimizer |" not in text and "3 pairs" in text
