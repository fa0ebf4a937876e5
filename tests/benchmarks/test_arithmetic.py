"""What is made of measured seconds, by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arithmetic import (
    Shape,
    agreement,
    decode_bound,
    forward_operations,
    median_ratio,
    same,
    utilisation,
)
from posttrain.config import MicroModel
from posttrain.engine.policy import build_micro, count_parameters

SHAPE = Shape(body=1000, vocabulary=50, hidden=8, layers=2, attention_width=6)


def test_median_of_paired_ratios_and_its_interval():
    # Ratios 2, 3, 4, 5, 9: the machine was slow for both in the last pair, which a ratio of medians would not see.
    ours, theirs = [1.0, 1.0, 2.0, 1.0, 10.0], [3.0, 2.0, 8.0, 5.0, 90.0]
    found = median_ratio(ours, theirs, draws=4000, seed=0)
    assert found.value == 4.0
    # P(median of 5 draws = 2) = P(at least 3 of 5 hit one of 5 values) = 0.058; so 2.5 % of the medians lie at 2.
    assert (found.low, found.high) == (2.0, 9.0)


def test_ratio_of_equal_sides_is_one_without_width():
    found = median_ratio([0.5, 3.0, 1.0, 2.0, 7.0], [0.5, 3.0, 1.0, 2.0, 7.0], draws=100, seed=0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_each_measurement_needs_its_partner():
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0, 2.0], [1.0], draws=10, seed=0)


def test_operations_of_a_forward_pass():
    # Prompt 3, responses 2 and 1: 6 tokens; query-key pairs 6 + (6 + 3) + (3 + 1) = 19; 3 scored positions.
    expected = 2 * 1000 * 6 + 4 * 2 * 6 * 19 + 2 * 50 * 8 * 3
    assert forward_operations(SHAPE, 3, [2, 1], scored=3) == expected


def test_responses_of_a_group_share_their_prompt():
    alone = forward_operations(SHAPE, 3, [2], scored=2)
    prompt = forward_operations(SHAPE, 3, [], scored=0)
    assert forward_operations(SHAPE, 3, [2] * 4, scored=8) == 4 * alone - 3 * prompt


def test_body_is_what_torch_multiplies():
    """Against the operations that torch itself counts in a forward pass."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    model = build_micro(
        MicroModel(**sizes, max_position_embeddings=64), vocab_size=50, eos_id=1, pad_id=0, seed=0
    ).requires_grad_(False)
    body = count_parameters(model) - 50 * 32
    shape = Shape(body=body, vocabulary=50, hidden=32, layers=2, attention_width=64)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones((1, 10), dtype=torch.int64), use_cache=False)
    ours = forward_operations(shape, 0, [10], scored=10)
    # Torch counts the masked half of attention (and rotary angles), we count norms' parameters as if they multiplied.
    masked = 4 * 2 * 64 * (10 * 10 - 55)
    assert ours + masked == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_utilisation():
    assert utilisation(3e9, 2.0, rate=6e9) == 0.25


def test_decoding_is_bound_by_weights_or_by_their_operations():
    parameters = SHAPE.parameters
    assert parameters == 1000 + 50 * 8
    slow_memory = decode_bound(SHAPE, 4, weight_bytes=2, rate=1e12, bandwidth=1e3)
    assert slow_memory == pytest.approx(4 * 1e3 / (2 * 1400))
    slow_arithmetic = decode_bound(SHAPE, 4, weight_bytes=2, rate=1e3, bandwidth=1e12)
    assert slow_arithmetic == pytest.approx(1e3 / (2 * 1400))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2.0, 5.0], [2.001, 5.0], True),
        ([2.0, 5.0], [2.0, 5.006], False),
        ([0.0, 1.0], [0.00009, 1.0], True),
        ([0.0, 1.0], [0.00011, 1.0], False),
        ([], [], False),
        ([1.0], [1.0, 2.0], False),
        ([float("nan")], [1.0], False),
        ([1.0], [float("nan")], False),
    ],
)
def test_same_loss(ours, theirs, expected):
    assert same(ours, theirs, tolerance=0.001) is expected


def test_share_of_equal_tokens():
    assert agreement([1, 2, 3, 4], [1, 2, 5, 4]) == 0.75
    assert agreement([1], [1, 2]) == agreement([], []) == 0.0
