"""Sampling in process: a decode loop over the decoder of any full-attention causal model of transformers.

`generate` of transformers spends most of a micro model's time on concatenating caches, on attention over repeated
prompts and on drawing noise for the whole vocabulary. Here
* a prompt is prefilled once; its keys and values stay shared by all its samples, whose scores against them are one
  matrix product instead of many matrix-vector products;
* own keys and values are written in place, into room that grows by doubling, and finished rows leave at intervals;
* in bf16 on a CPU the weights are laid out once, and products are made for lengths that come again;
* a token costs one uniform number per row (inverse of the cumulative distribution).

The uniform numbers depend on seed, request, sample and position alone, so that a response does not depend on what else
is in the batch, except where rounding moves a probability across its number.

Shapes: P prompts, B rows still running, S prompt or response tokens so far, V vocabulary, H key-value heads, R query
heads per key-value head, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from posttrain import config
from posttrain.engine.attention import EXTRA_TERMS, refuse_extra_terms, run_decoder
from posttrain.engine.canary import check_canary
from posttrain.engine.distributed import share_out
from posttrain.engine.draw import choose
from posttrain.engine.lm_head import project
from posttrain.engine.policy import Policy
from posttrain.engine.prepack import prepacked
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.errors import ModelError
from posttrain.records import Finish, Rollout

_ROOM = 64
"""Room for own tokens is made by multiples of this; in bf16 on a CPU they are also attended to by such multiples.

The library behind torch compiles a bf16 product for each of its shapes, which takes longer than many of them, and is
slow where rows are not aligned.
"""
_LEAVE_SHARE = 0.125
"""Finished rows are removed when they are this share of the batch: removing copies the cache of the others."""


class SharedPromptCache(Cache):
    """Keys (P, H, D, S) and values (P, H, S, D) of the prompts, once each, and of the responses (B, H, room, D)."""

    def __init__(self, lengths_P: Tensor) -> None:
        super().__init__(layers=[])
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.own: list[tuple[Tensor, Tensor]] = []
        self.length = -1
        """Response tokens cached; -1 while the prompts are being read."""
        width = int(lengths_P.max())
        absent_PS = torch.arange(width, device=lengths_P.device)[None, :] >= lengths_P[:, None]
        self.absent_P11S = absent_PS[:, None, None, :] if bool(absent_PS.any()) else None
        """True on padding."""
        self.grid_rows = 0
        self.slot_B: Tensor | None = None
        """Row -> place in the (P, grid_rows) grid; None: the rows fill the grid in order."""
        self.stride = 1
        """Own keys and values are shown by multiples of this, which may be more than there are."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.length < 0:
            # As the products of every step want them.
            self.prompts.append((key_states.transpose(2, 3).contiguous(), value_states.contiguous()))
            return key_states, value_states
        keys, values = self.own[layer_idx]
        keys[:, :, self.length] = key_states[:, :, 0]
        values[:, :, self.length] = value_states[:, :, 0]
        shown = self.length + self.stride - self.length % self.stride
        return keys[:, :, :shown], values[:, :, :shown]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.length, 0)

    def start(self, rows_P: Sequence[int]) -> None:
        """Make place for `rows_P[p]` responses to prompt p; rows are prompt-major."""
        self.length = 0
        self._place([prompt for prompt, rows in enumerate(rows_P) for _ in range(rows)])
        rows = sum(rows_P)
        for keys, values in self.prompts:
            heads, width = keys.shape[1:3]
            # Zeros, because what is not there yet counts 0 times.
            own_values = values.new_zeros((rows, heads, _ROOM, values.shape[3]))
            self.own.append((keys.new_zeros((rows, heads, _ROOM, width)), own_values))
        if keys.device.type == "cpu" and keys.dtype == torch.bfloat16:
            self.stride = _ROOM

    def _place(self, prompt_of_row: Sequence[int]) -> None:
        counts = np.bincount(prompt_of_row, minlength=len(self.prompts[0][0]))
        self.grid_rows = int(counts.max())
        self.slot_B = None
        if (counts != self.grid_rows).any():
            before = np.cumsum(counts) - counts
            prompts = np.asarray(prompt_of_row)
            slots = prompts * self.grid_rows + np.arange(len(prompts)) - before[prompts]
            self.slot_B = torch.from_numpy(slots).to(self.prompts[0][0].device)

    def rebuild(self, keep_B: Tensor | None, prompt_of_row: Sequence[int], *, room: int) -> None:
        """Keep the rows `keep_B` (None: all), with room for `room` response tokens."""
        self.own = [(self._moved(keys, keep_B, room), self._moved(values, keep_B, room)) for keys, values in self.own]
        if keep_B is not None:
            self._place(prompt_of_row)

    def _moved(self, states_BHSD: Tensor, keep_B: Tensor | None, room: int) -> Tensor:
        kept = states_BHSD[:, :, : self.length]
        kept = kept if keep_B is None else kept.index_select(0, keep_B)
        moved = states_BHSD.new_zeros((kept.shape[0], kept.shape[1], room, kept.shape[3]))
        moved[:, :, : self.length] = kept
        return moved

    def room(self) -> int:
        return self.own[0][0].shape[2]


def _to_grid(rows_BHRD: Tensor, cache: SharedPromptCache, prompts: int) -> Tensor:
    """(B, H, R, D) -> (P, H, rows * R, D): the queries of one prompt side by side."""
    _, heads, per_head, width = rows_BHRD.shape
    if cache.slot_B is not None:
        grid = rows_BHRD.new_zeros((prompts * cache.grid_rows, heads, per_head, width))
        rows_BHRD = grid.index_copy_(0, cache.slot_B, rows_BHRD)
    grouped = rows_BHRD.view(prompts, cache.grid_rows, heads, per_head, width).transpose(1, 2)
    return grouped.reshape(prompts, heads, cache.grid_rows * per_head, width)


def _from_grid(grid_PHGD: Tensor, cache: SharedPromptCache, per_head: int) -> Tensor:
    """Inverse of `_to_grid`."""
    prompts, heads, _, width = grid_PHGD.shape
    rows = grid_PHGD.view(prompts, heads, cache.grid_rows, per_head, width).transpose(1, 2)
    rows = rows.reshape(prompts * cache.grid_rows, heads, per_head, width)
    return rows if cache.slot_B is None else rows.index_select(0, cache.slot_B)


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cache: SharedPromptCache,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention interface of transformers; for one query token, softmax over shared prompt and own tokens together."""
    refuse_extra_terms(module, kwargs, EXTRA_TERMS | {"sliding_window"}, "wanted: plain attention, or rollout: vllm")
    if cache.length < 0:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)
    rows, query_heads, _, width = query.shape
    prompt_keys, prompt_values = cache.prompts[module.layer_idx]  # type: ignore[index]
    prompts, heads, _, prompt_tokens = prompt_keys.shape
    per_head = query_heads // heads
    query_BHRD = (query * scaling).view(rows, heads, per_head, width)
    shared = _to_grid(query_BHRD, cache, prompts) @ prompt_keys
    if cache.absent_P11S is not None:
        shared = shared.masked_fill_(cache.absent_P11S, float("-inf"))
    scores = torch.cat([_from_grid(shared, cache, per_head), query_BHRD @ key.transpose(2, 3)], dim=-1)
    scores[..., prompt_tokens + cache.length + 1 :] = float("-inf")
    weights = torch.softmax(scores, dim=-1)
    on_prompt = _to_grid(weights[..., :prompt_tokens], cache, prompts) @ prompt_values
    out = weights[..., prompt_tokens:] @ value + _from_grid(on_prompt, cache, per_head)
    return out.view(rows, 1, query_heads, out.shape[-1]), None


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, without gradients; as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Samples first ... first + count - 1 of a request; a whole group where it fits into a batch."""

    request: int
    first: int
    count: int


def _plan(requests: Sequence[Request], own: Sequence[int], *, samples: int, batch: int) -> list[list[_Piece]]:
    """The requests `own` in batches of at most `batch` rows, prompts of like length together."""
    batches: list[list[_Piece]] = []
    room = 0
    for index in sorted(own, key=lambda i: (-len(requests[i].prompt_ids), i)):
        for first in range(0, samples, batch):
            count = min(batch, samples - first)
            if count > room:
                batches.append([])
                room = batch
            batches[-1].append(_Piece(index, first, count))
            room -= count
    return batches


class TransformersEngine(RolloutEngine):
    """RolloutEngine in the stage's processes, by shares. Weights are shared with the model passed in, not copied."""

    def __init__(self, policy: Policy, *, batch: int, tolerance: float) -> None:
        self.version = 0
        self._model = policy.model
        self._end_id = policy.tokenizer.eos_token_id
        self._batch = batch
        self._tolerance = tolerance
        kinds = set(getattr(policy.model.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ModelError(f"layers of type {', '.join(sorted(kinds))}; wanted: full_attention, or rollout: vllm")

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        self._check_lengths(requests, generation.max_new_tokens)
        stops = [self._end_id] if stop_ids is None else list(stop_ids)

        def answer(own: Sequence[int]) -> list[list[Rollout]]:
            answers: dict[tuple[int, int], Rollout] = {}
            run = partial(self._run, requests, samples=samples, generation=generation, seed=seed, stops=stops)
            with _decoding(self._model), prepacked(self._model, products=generation.max_new_tokens):
                for pieces in _plan(requests, own, samples=samples, batch=self._batch):
                    answers |= run(pieces)
            return [[answers[request, sample] for sample in range(samples)] for request in own]

        return [rollout for group in share_out(range(len(requests)), answer) for rollout in group]

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        self._model = model
        self.version = version
        check_canary(self.generate, model, version=version, tolerance=self._tolerance)

    def close(self) -> None:
        del self._model

    def _check_lengths(self, requests: Sequence[Request], new_tokens: int) -> None:
        limit = self._model.config.max_position_embeddings
        for request in requests:
            if not request.prompt_ids or len(request.prompt_ids) + new_tokens > limit:
                raise ModelError(
                    f"problem {request.problem_id}: {len(request.prompt_ids)} prompt tokens and {new_tokens} new ones; "
                    f"wanted: at least one prompt token, and together at most {limit} (max_position_embeddings)"
                )

    def _run(
        self,
        requests: Sequence[Request],
        pieces: Sequence[_Piece],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stops: Sequence[int],
    ) -> dict[tuple[int, int], Rollout]:
        noise = None
        if generation.temperature > 0:
            noise = np.concatenate(
                [
                    np.random.default_rng([seed, piece.request]).random((samples, generation.max_new_tokens))[
                        piece.first : piece.first + piece.count
                    ]
                    for piece in pieces
                ]
            )
        prompts = [requests[piece.request].prompt_ids for piece in pieces]
        decoded = decode(
            self._model,
            prompts,
            [piece.count for piece in pieces],
            noise=None if noise is None else torch.from_numpy(noise),
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            stops=stops,
        )
        where = [(piece.request, piece.first + offset) for piece in pieces for offset in range(piece.count)]
        answers = {}
        for (request, sample), (ids, logprobs, finish) in zip(where, decoded, strict=True):
            asked = requests[request]
            versions = (self.version,) * len(ids)
            answers[request, sample] = Rollout(asked.problem_id, asked.prompt_ids, ids, logprobs, finish, versions)
        return answers


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[SharedPromptCache, Tensor, Tensor]:
    """Cache with the prompts in it, lengths_P, and the hidden state (P, C) at each prompt's last token."""
    device = model.device
    lengths_P = torch.tensor([len(ids) for ids in prompts], device=device)
    ids_PS = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True).to(device)
    cache = SharedPromptCache(lengths_P)
    # Right padding: with causal attention nothing real sees it, and its keys are masked while decoding.
    positions_1S = torch.arange(ids_PS.shape[1], device=device)[None]
    output = _read(model, ids_PS, positions_1S, cache)
    last = output.last_hidden_state[torch.arange(len(prompts), device=device), lengths_P - 1]
    return cache, lengths_P, last


def _read(model: PreTrainedModel, ids: Tensor, positions: Tensor, cache: SharedPromptCache) -> Any:
    """The decoder's output for tokens that follow those in the cache."""
    attend = partial(shared_prompt_attention, cache=cache)
    return run_decoder(
        model.get_decoder(), attend, input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
    )


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows_P: Sequence[int],
    *,
    noise: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    stops: Sequence[int],
) -> list[tuple[tuple[int, ...], tuple[float, ...], Finish]]:
    """(ids, log-probabilities, finish) of `rows_P[p]` responses to each prompt, prompt-major.

    `noise`: uniform numbers in [0, 1), shape (rows, max_new_tokens); None is greedy.
    """
    head = model.get_output_embeddings()
    cache, lengths_P, hidden_PC = _prefill(model, prompts)
    device = hidden_PC.device
    cache.start(rows_P)
    prompt_of_row = np.repeat(np.arange(len(prompts)), rows_P)
    rows, owner_B = len(prompt_of_row), torch.from_numpy(prompt_of_row).to(device)
    logits_BV, position_B = project(head, hidden_PC)[owner_B], lengths_P[owner_B]
    tokens_BT = torch.zeros((rows, max_new_tokens), dtype=torch.int64, device=device)
    logprobs_BT = torch.zeros((rows, max_new_tokens), dtype=torch.float32, device=device)
    lengths_B = torch.full((rows,), max_new_tokens, dtype=torch.int64, device=device)
    noise_BT = None if noise is None else noise.to(device)
    stops_S = torch.tensor(list(stops), dtype=torch.int64, device=device)
    running_B = torch.arange(rows, device=device)  # which responses the rows of the batch are
    ended_B = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        uniform_B = None if noise_BT is None else noise_BT[running_B, step]
        chosen_B, logprob_B = choose(logits_BV, uniform_B, temperature=temperature)
        tokens_BT[running_B, step] = chosen_B
        logprobs_BT[running_B, step] = logprob_B
        stopping_B = torch.isin(chosen_B, stops_S) & ~ended_B
        lengths_B[running_B[stopping_B]] = step + 1
        ended_B |= stopping_B
        ended = int(ended_B.sum())
        if ended == len(ended_B) or step + 1 == max_new_tokens:
            break
        full = cache.length == cache.room()
        if ended >= max(1, _LEAVE_SHARE * len(ended_B)) or full:
            room = min(2 * cache.room(), math.ceil(max_new_tokens / _ROOM) * _ROOM) if full else cache.room()
            keep_B = torch.nonzero(~ended_B)[:, 0] if ended else None
            if keep_B is not None:
                running_B, chosen_B, position_B = running_B[keep_B], chosen_B[keep_B], position_B[keep_B]
                ended_B = torch.zeros(len(keep_B), dtype=torch.bool, device=device)
                prompt_of_row = prompt_of_row[keep_B.cpu().numpy()]
            cache.rebuild(keep_B, prompt_of_row.tolist(), room=room)
        hidden_B1C = _read(model, chosen_B[:, None], position_B[:, None], cache).last_hidden_state
        cache.length += 1
        position_B = position_B + 1
        logits_BV = project(head, hidden_B1C[:, 0])
    return _collect(tokens_BT, logprobs_BT, lengths_B, stops)


def _collect(
    tokens_BT: Tensor, logprobs_BT: Tensor, lengths_B: Tensor, stops: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[float, ...], Finish]]:
    responses: list[tuple[tuple[int, ...], tuple[float, ...], Finish]] = []
    lists = zip(tokens_BT.tolist(), logprobs_BT.tolist(), lengths_B.tolist(), strict=True)
    for tokens, logprobs, length in lists:
        finish: Finish = "stop" if tokens[length - 1] in stops else "length"
        responses.append((tuple(tokens[:length]), tuple(logprobs[:length]), finish))
    return responses
