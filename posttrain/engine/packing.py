"""Responses packed for training: one flat row of tokens without padding, each prompt in it once.

Everything a policy learns from is responses to prompts. Responses that follow one another and have the same prompt
share it: its tokens go through the model once, and every response attends to their keys and values. All layers but
attention see the flat row; attention gathers rows of like lengths from it (posttrain.engine.attention). A response's
log-probabilities, and its part of the gradient, are those that it has alone.

Shapes: N tokens, M wanted tokens, B responses, T wanted tokens of the response that has most; R attention rows of W
tokens, over prompts of S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Response = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt, which may be empty, and of a response to it."""

LIKE = 0.8
"""Share of the longest row's tokens that a row must have to be attended to beside it: padding costs attention."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of like lengths that attend together, each causally to itself and to the whole of its prompt."""

    rows: int
    width: int
    prompt_PS: Tensor | None
    """Places of the prompts' tokens, padded with any; None where the rows have no prompt but what is in them."""
    prompt_of_R: Tensor
    """Which of these prompts each row answers."""
    seen_R1WK: Tensor | None
    """bool, over keys of the prompt and then of the row itself; one for all rows where theirs are equal. None: causal
    attention over the row itself."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of all buckets, one bucket after the other, have their tokens."""

    token_G: Tensor
    """Place in the flat row; 0 on padding."""
    slot_N: Tensor
    """Inverse: where each token of the flat row stands."""
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """B responses; wanted tokens are numbered response by response."""

    ids_N: Tensor
    positions_N: Tensor
    layout: Layout
    wanted_M: Tensor
    """Places of the wanted tokens."""
    before_M: Tensor
    """Places of the tokens before them, from which they are predicted."""
    last_B: Tensor
    """Place of each response's last token."""
    mask_BT: Tensor
    """bool; True on the wanted tokens of each response, which stand at the left."""
    counts: tuple[int, ...]
    """Wanted tokens of each response."""

    @property
    def targets_M(self) -> Tensor:
        return self.ids_N[self.wanted_M]

    def to(self, device: torch.device) -> Packed:
        return moved(self, device)

    def spread(self, values_M: Tensor) -> Tensor:
        """(B, T): the values at the wanted tokens of each response, and 0 behind them."""
        return values_M.new_zeros(self.mask_BT.shape).masked_scatter(self.mask_BT, values_M)

    def split(self, values_M: Tensor) -> tuple[Tensor, ...]:
        """The values of each response."""
        return values_M.split(self.counts)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a dataclass with all that it holds, on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if isinstance(value, Bucket | Layout | Packed):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens that attend causally to each other, and to all of a prompt."""

    start: int
    length: int
    prompt: tuple[int, int] | None
    """Place and length."""


def pack(responses: Sequence[Response], *, wanted: Sequence[Sequence[int]] | None = None) -> Packed:
    """The responses in their order; those with the prompt of the one before them share it.

    `wanted`: for each response which of its tokens are (1 or True); None: all. Raises ValueError where the first token
    of a response without a prompt is wanted, which nothing predicts.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[_Row] = []
    places: list[tuple[int, int]] = []  # of wanted tokens, with those before them
    last: list[int] = []
    counts: list[int] = []
    for first, stop in _groups(responses):
        prompt, origin, shared = responses[first][0], len(ids), stop - first > 1
        ids += prompt
        positions += range(len(prompt))
        if shared:
            rows.append(_Row(origin, len(prompt), None))
        for number in range(first, stop):
            own, start = responses[number][1], len(ids)
            ids += own
            positions += range(len(prompt), len(prompt) + len(own))
            if shared:
                rows.append(_Row(start, len(own), (origin, len(prompt))))
            before = origin + len(prompt) - 1
            chosen = _chosen(own, None if wanted is None else wanted[number])
            if not prompt and chosen[:1] == [0]:
                raise ValueError("the first token of a response without a prompt is wanted; nothing predicts it")
            places += [(start + t, start + t - 1 if t else before) for t in chosen]
            counts.append(len(chosen))
            last.append(len(ids) - 1 if own else before)
        if not shared:
            rows.append(_Row(origin, len(ids) - origin, None))
    wanted_M, before_M = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        _layout([row for row in rows if row.length], len(ids)),
        wanted_M,
        before_M,
        torch.tensor(last),
        torch.arange(max(counts)) < torch.tensor(counts)[:, None],
        tuple(counts),
    )


def plan(items: Sequence[Sequence[Response]], *, tokens: int) -> list[list[int]]:
    """Micro-batches of indices of `items`, each of at most `tokens` tokens as packed (a larger item stands alone).

    The responses of an item have one prompt and stay together. Items with the same prompt stand side by side, in one
    micro-batch where they fit; like lengths go together.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        by_prompt.setdefault(item[0][0] or (-1 - index,), []).append(index)
    own = [sum(len(response) for _, response in item) for item in items]
    longest = [len(item[0][0]) + max(len(response) for _, response in item) for item in items]
    batches: list[list[int]] = []
    room = 0
    for group in sorted(by_prompt.values(), key=lambda group: (-max(longest[i] for i in group), group[0])):
        shared = len(items[group[0]][0][0])
        if shared + sum(own[i] for i in group) > room:
            room = 0
        fresh = True  # whether the prompt has still to be put into the batch
        for index in sorted(group, key=lambda i: (-longest[i], i)):
            if own[index] + fresh * shared > room:
                batches.append([])
                room, fresh = tokens, True
            batches[-1].append(index)
            room -= own[index] + fresh * shared
            fresh = False
    return batches


def _groups(responses: Sequence[Response]) -> list[tuple[int, int]]:
    """(first, one past the last) of responses in a row with equal prompts, which are not empty."""
    starts = [i for i, (prompt, _) in enumerate(responses) if i == 0 or not prompt or prompt != responses[i - 1][0]]
    return list(zip(starts, [*starts[1:], len(responses)], strict=True))


def _chosen(own: Sequence[int], mask: Sequence[int] | None) -> list[int]:
    if mask is None:
        return list(range(len(own)))
    if len(mask) != len(own):
        raise ValueError(f"a response has {len(own)} ids and {len(mask)} mask entries; wanted: equal numbers")
    return [t for t, wanted in enumerate(mask) if wanted]


def _layout(rows: Sequence[_Row], tokens: int) -> Layout:
    buckets, grids = [], []
    for group in _alike(rows):
        bucket, grid_RW = _bucket(group)
        buckets.append(bucket)
        grids.append(grid_RW.flatten())
    token_G = torch.cat(grids)
    real_G = token_G >= 0
    slot_N = torch.empty(tokens, dtype=torch.int64)
    slot_N[token_G[real_G]] = torch.nonzero(real_G)[:, 0]
    return Layout(token_G.clamp(min=0), slot_N, tuple(buckets))


def _alike(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows with a prompt apart from the others, each kind by like lengths."""
    groups: list[list[_Row]] = []
    for prompted in (False, True):
        some = sorted((r for r in rows if (r.prompt is not None) is prompted), key=lambda r: (-r.length, r.start))
        for number, row in enumerate(some):
            if number == 0 or row.length < LIKE * groups[-1][0].length:
                groups.append([])
            groups[-1].append(row)
    return groups


def _bucket(rows: Sequence[_Row]) -> tuple[Bucket, Tensor]:
    """With the places of its tokens (R, W), -1 on padding."""
    width = rows[0].length
    lengths_R1 = torch.tensor([[row.length] for row in rows])
    grid_RW = torch.tensor([[row.start] for row in rows]) + torch.arange(width)
    grid_RW = grid_RW.masked_fill(torch.arange(width) >= lengths_R1, -1)
    prompts = sorted({row.prompt for row in rows if row.prompt is not None})
    if not prompts:
        return Bucket(len(rows), width, None, torch.empty(0, dtype=torch.int64), None), grid_RW
    lengths_P1 = torch.tensor([[length] for _, length in prompts])
    offsets_S = torch.arange(int(lengths_P1.max()))
    prompt_PS = torch.tensor([[start] for start, _ in prompts]) + torch.minimum(offsets_S, lengths_P1 - 1)
    prompt_of_R = torch.tensor([prompts.index(row.prompt) for row in rows if row.prompt is not None])
    there_PS = offsets_S < lengths_P1
    there_RS = there_PS[:1] if bool(there_PS.all()) else there_PS[prompt_of_R]
    causal_WW = torch.ones((width, width), dtype=torch.bool).tril()
    seen_RWK = torch.cat([there_RS[:, None].expand(-1, width, -1), causal_WW.expand(len(there_RS), -1, -1)], dim=-1)
    return Bucket(len(rows), width, prompt_PS, prompt_of_R, seen_RWK[:, None]), grid_RW
