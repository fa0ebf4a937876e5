"""Padding, packing, grouping."""

from __future__ import annotations

import random

import pytest
import torch

from posttrain.engine.batching import Example, collate, micro_batches, pack, pad
from posttrain.engine.policy import sequence_logprobs, wanted_logprobs
from tests.engine.conftest import micro_model


def test_pad_is_right_padding() -> None:
    ids_BT, mask_BT = pad([[5, 6, 7], [8]], pad_id=9)
    assert ids_BT.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_pack_fills_rows_by_best_fit() -> None:
    # 7 and 6 open rows of 10; 4 fits only beside 6; 3 fits 7 exactly; 2 opens a third.
    assert pack([4, 7, 3, 6, 2], length=10) == [[1, 2], [3, 0], [4]]


def test_pack_keeps_every_example_once_within_the_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(1, 50) for _ in range(500)]
    rows = pack(lengths, length=64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    assert sum(lengths) / (64 * len(rows)) > 0.97


def test_pack_names_an_example_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="example 1 has 11 tokens"):
        pack([3, 11], length=10)


def test_a_packed_example_has_the_logprobs_it_has_alone() -> None:
    model = micro_model()
    rng = random.Random(1)
    examples: list[Example] = [([rng.randint(3, 63) for _ in range(n)], [1] * n) for n in (9, 5, 12, 3, 7, 10)]
    rows = [[examples[i] for i in row] for row in pack([len(ids) for ids, _ in examples], length=20)]
    packed = collate(rows)
    with torch.no_grad():
        together_N = wanted_logprobs(
            model,
            packed.ids_BT,
            packed.trained_BT,
            temperature=1.0,
            positions_BT=packed.positions_BT,
            attention_B1TT=packed.attention_B1TT,
        )
        alone = []
        for ids, _ in (example for row in rows for example in row):
            ids_BT, mask_BT = pad([ids])
            alone.append(sequence_logprobs(model, ids_BT, mask_BT, temperature=1.0)[0, 1:])
    torch.testing.assert_close(together_N, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_neighbour_cannot_be_seen() -> None:
    model = micro_model()
    example: Example = ([3, 4, 5, 6], [1, 1, 1, 1])

    def logprobs(neighbour: list[int]) -> torch.Tensor:
        packed = collate([[(neighbour, [0] * len(neighbour)), example]])
        with torch.no_grad():
            return wanted_logprobs(
                model,
                packed.ids_BT,
                packed.trained_BT,
                temperature=1.0,
                positions_BT=packed.positions_BT,
                attention_B1TT=packed.attention_B1TT,
            )

    assert torch.equal(logprobs([7, 8, 9]), logprobs([10, 11, 12]))


def test_collate_positions_masks_and_padding() -> None:
    packed = collate([[([5, 6, 7], [1, 1, 1]), ([8, 9], [0, 1])], [([4], [1])]], pad_id=0)
    assert packed.ids_BT.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert packed.positions_BT.tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert packed.trained_BT.tolist() == [[False, True, True, False, True], [False] * 5]
    assert packed.attention_B1TT[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert bool(packed.attention_B1TT.any(-1).all()), "a row of scores without any key would be NaN"


def test_micro_batches_group_like_lengths_within_the_budget() -> None:
    # Longest first: 9 alone (9*2 > 16), 8 and 5 (8*2), 4, 3, 1 (4*3).
    assert micro_batches([5, 9, 3, 8, 4, 1], tokens=16) == [[1], [3, 0], [4, 2, 5]]


def test_an_item_beyond_the_budget_stands_alone() -> None:
    assert micro_batches([2, 40, 2], tokens=10) == [[1], [0, 2]]
