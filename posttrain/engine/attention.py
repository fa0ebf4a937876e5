"""Attention over packed responses, as an attention interface of transformers.

Shapes: N tokens, Q query heads, H key-value heads, D head width; R rows of W tokens, over prompts of S.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from posttrain.engine import attention_products
from posttrain.engine.attention_products import attend_by_products
from posttrain.engine.packing import Bucket, Layout, Packed
from posttrain.errors import ModelError

EXTRA_TERMS = frozenset({"softcap", "s_aux", "position_bias"})
"""Arguments of attention that is not plain softmax attention."""

_NAME = "posttrain"
_NO_MASK = torch.empty((1, 1, 0, 0))
"""Four dimensions: a mask that transformers passes on as it is, instead of making one."""


def run_decoder(body: nn.Module, attend: Callable[..., tuple[Tensor, None]], **inputs: Any) -> Any:
    """The output of a decoder without its head whose layers attend by `attend`, an attention interface of transformers.

    The model keeps an interface that does as `sdpa` does in every other call, so that threads can share it.
    """
    settings: Any = body.config
    if settings._attn_implementation != _NAME:
        # On the config directly: set_attn_implementation walks and re-checks the whole model.
        settings._attn_implementation_internal = _NAME
    return body(attention_mask=_NO_MASK, attend=attend, **inputs)


def _attention(module: nn.Module, *states: Any, attend: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
    return (attend or sdpa_attention_forward)(module, *states, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def packed_hidden(body: nn.Module, packed: Packed) -> Tensor:
    """Hidden states (N, C) of all tokens under a decoder without its head.

    Raises ModelError where a layer lets tokens see each other in another way than by full attention.
    """
    layers, attended = body.config.num_hidden_layers, 0  # type: ignore[union-attr]

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        nonlocal attended
        attended += 1
        return packed_attention(*args, layout=packed.layout, **kwargs)

    # The cache must stay off: transformers would build one, and then ignore position ids that start anew.
    output = run_decoder(
        body, attend, input_ids=packed.ids_N[None], position_ids=packed.positions_N[None], use_cache=False
    )
    if attended != layers:
        raise ModelError(
            f"{type(body).__name__}: {attended} of {layers} layers attend by the interface of transformers; "
            "wanted: all, as responses packed into one row would see each other"
        )
    hidden_NC: Tensor = output.last_hidden_state[0]
    return hidden_NC


def refuse_extra_terms(module: nn.Module, arguments: dict[str, Any], terms: Set[str], wanted: str) -> None:
    """Raises ModelError where attention is given one of `terms`."""
    for name in sorted(terms):
        if arguments.get(name) is not None:
            raise ModelError(f"{type(module).__name__}: attention with {name}; {wanted}")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention interface of transformers for one flat row: (1, heads, N, D) in, (1, N, Q, D) out."""
    refuse_extra_terms(module, kwargs, EXTRA_TERMS, "wanted: plain attention")
    window = kwargs.get("sliding_window")
    if window is not None and window < _longest(layout):
        raise ModelError(
            f"{type(module).__name__}: a sliding window of {window} tokens; wanted: one that holds the longest "
            f"sequence, which has {_longest(layout)}"
        )
    query_NQD, key_NHD, value_NHD = (states[0].transpose(0, 1) for states in (query, key, value))
    sizes = [bucket.rows * bucket.width for bucket in layout.buckets]
    grids = [_to_grid(states, layout).split(sizes) for states in (query_NQD, key_NHD, value_NHD)]
    outputs = [
        _attend(bucket, own_query, (own_key, own_value), (key_NHD, value_NHD), scaling=scaling)
        for bucket, own_query, own_key, own_value in zip(layout.buckets, *grids, strict=True)
    ]
    return _from_grid(torch.cat(outputs), layout)[None], None


def _longest(layout: Layout) -> int:
    return max(b.width + (0 if b.prompt_PS is None else b.prompt_PS.shape[1]) for b in layout.buckets)


def _attend(
    bucket: Bucket, query: Tensor, own: tuple[Tensor, Tensor], everyone: tuple[Tensor, Tensor], *, scaling: float
) -> Tensor:
    """(R W, Q, D) of the bucket's rows. `own`: their keys and values (R W, H, D); `everyone`: those of all tokens."""
    query_RQWD = _rows(query, bucket)
    keys, values = (_with_prompts(_rows(a, bucket), b, bucket) for a, b in zip(own, everyone, strict=True))
    mask = bucket.seen_R1WK
    if attention_products.pays(query, keys.shape[2]):
        seen = torch.ones((1, 1, bucket.width, bucket.width), dtype=torch.bool).tril() if mask is None else mask
        return attend_by_products(query_RQWD, keys, values, seen, scaling=scaling).transpose(1, 2).flatten(0, 1)
    grouped = keys.shape[1] != query_RQWD.shape[1]
    if grouped and mask is not None and query.is_cuda:
        # The kernels for a mask there want as many key-value heads as query heads.
        times = query_RQWD.shape[1] // keys.shape[1]
        keys, values, grouped = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1), False
    out_RQWD = nn.functional.scaled_dot_product_attention(
        query_RQWD, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return out_RQWD.transpose(1, 2).flatten(0, 1)


def _rows(states: Tensor, bucket: Bucket) -> Tensor:
    """(R W, heads, D) -> (R, heads, W, D)."""
    return states.unflatten(0, (bucket.rows, bucket.width)).transpose(1, 2)


def _with_prompts(own_RHWD: Tensor, states_NHD: Tensor, bucket: Bucket) -> Tensor:
    """(R, H, S + W, D): what the prompt of each row has before what the row has itself."""
    if bucket.prompt_PS is None:
        return own_RHWD
    prompts_PSHD = states_NHD.index_select(0, bucket.prompt_PS.flatten()).unflatten(0, bucket.prompt_PS.shape)
    prompts_RHSD = prompts_PSHD.index_select(0, bucket.prompt_of_R).transpose(1, 2)
    return torch.cat([prompts_RHSD, own_RHWD], dim=2)


class _Moved(torch.autograd.Function):
    """Tokens taken to other places, (from, ...) -> (to, ...).

    The gradient takes them back. Adding it up, as autograd would, is not needed: a token is real at one place only, and
    what stands on padding has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return states.flatten(1).index_select(0, there).unflatten(1, states.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.flatten(1).index_select(0, ctx.back).unflatten(1, gradient.shape[1:]), None, None


def _to_grid(states: Tensor, layout: Layout) -> Tensor:
    """Flat row -> rows of all buckets, one after the other."""
    grid: Tensor = _Moved.apply(states, layout.token_G, layout.slot_N)
    return grid


def _from_grid(grid: Tensor, layout: Layout) -> Tensor:
    """Rows of all buckets -> flat row."""
    if len(layout.token_G) > len(layout.slot_N):  # padding, of which the gradient is zero
        return grid.flatten(1).index_select(0, layout.slot_N).unflatten(1, grid.shape[1:])
    flat: Tensor = _Moved.apply(grid, layout.slot_N, layout.token_G)
    return flat
