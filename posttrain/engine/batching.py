"""Batches of token ids: padding, packing, and grouping by length.

Packing puts several short examples into one row; positions start anew with each and attention is block-diagonal, so
that an example's log-probabilities are those it has alone. The mask is explicit rather than left to transformers, which
infers packing from position ids only while no cache is in use.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids, and a mask of equal length: 1 = trained."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    ids_BT: Tensor
    trained_BT: Tensor
    """bool; never True on the first token of an example, which nothing predicts."""
    positions_BT: Tensor
    attention_B1TT: Tensor
    """bool, True = may attend: causal and within one example."""

    def to(self, device: torch.device) -> PackedRows:
        tensors = (self.ids_BT, self.trained_BT, self.positions_BT, self.attention_B1TT)
        return PackedRows(*(tensor.to(device) for tensor in tensors))


def pad(sequences: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT (int64; 1 = real token), right-padded to the longest."""
    width = max(len(ids) for ids in sequences)
    ids_BT = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(sequences), width), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask_BT[row, : len(ids)] = 1
    return ids_BT, mask_BT


def pack(lengths: Sequence[int], *, length: int) -> list[list[int]]:
    """Rows of example indices with at most `length` tokens each, by best-fit decreasing.

    Each example goes, longest first, into the fullest row that still has room for it.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[index]
        if size > length:
            raise ValueError(f"example {index} has {size} tokens; wanted: at most {length}")
        slot = bisect_left(space, (size, -1))
        if slot == len(space):
            rows.append([index])
            insort(space, (length - size, len(rows) - 1))
        else:
            left, row = space.pop(slot)
            rows[row].append(index)
            insort(space, (left - size, row))
    return rows


def collate(rows: Sequence[Sequence[Example]], *, pad_id: int = 0) -> PackedRows:
    """Tensors of packed rows, right-padded to the fullest."""
    width = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    trained_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    positions_BT = torch.zeros((len(rows), width), dtype=torch.int64)
    # Padding is one more example: a row of scores with nothing to attend to would be NaN.
    example_BT = torch.full((len(rows), width), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        start = 0
        for which, (ids, mask) in enumerate(row):
            if len(ids) != len(mask):
                raise ValueError(f"an example has {len(ids)} ids and {len(mask)} mask entries; wanted: equal numbers")
            stop = start + len(ids)
            ids_BT[number, start:stop] = torch.tensor(ids, dtype=torch.int64)
            trained_BT[number, start + 1 : stop] = torch.tensor(mask[1:], dtype=torch.bool)
            positions_BT[number, start:stop] = torch.arange(len(ids))
            example_BT[number, start:stop] = which
            start = stop
    same_BTT = example_BT[:, :, None] == example_BT[:, None, :]
    causal_TT = torch.ones((width, width), dtype=torch.bool).tril()
    return PackedRows(ids_BT, trained_BT, positions_BT, (same_BTT & causal_TT)[:, None])


def micro_batches(lengths: Sequence[int], *, tokens: int) -> list[list[int]]:
    """Index groups of like lengths, each of at most `tokens` padded tokens (a longer single item stands alone)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Longest first: the group's first item sets its padded width.
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
