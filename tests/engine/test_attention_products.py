"""Attention as matrix products against torch's own, block by block, with prompts of unequal lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posttrain.engine import attention_products
from posttrain.engine.attention_products import attend_by_products, pays
from posttrain.engine.packing import pack
from posttrain.engine.policy import predicted_logprobs
from tests.engine.conftest import llama_model
from tests.plain import sequence_logprobs

ROWS, HEADS, KEY_HEADS, DEPTH = 3, 6, 2, 16


def states(width: int, prompt: int, *, ragged: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, keys, values, a gradient of the output, and which keys are seen; ragged: prompts end at unequal places."""
    generator = torch.Generator().manual_seed(width)

    def draw(heads: int, tokens: int) -> Tensor:
        # As a model hands them over: heads and tokens transposed.
        return torch.randn(ROWS, tokens, heads, DEPTH, generator=generator).transpose(1, 2)

    keys = prompt + width
    lengths_R1 = torch.tensor([[prompt], [prompt // 2], [0]] if ragged else [[prompt]] * ROWS)
    there_RK = torch.cat([torch.arange(prompt) < lengths_R1, torch.ones(ROWS, width, dtype=torch.bool)], dim=1)
    causal_WK = torch.ones(width, keys, dtype=torch.bool).tril(prompt)
    seen_R1WK = (there_RK[:, None] & causal_WK)[:, None]
    return draw(HEADS, width), draw(KEY_HEADS, keys), draw(KEY_HEADS, keys), draw(HEADS, width), seen_R1WK


def results(attend: object, *inputs: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, and the gradients of query, keys and values."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(*leaves)  # type: ignore[operator]
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


def fused(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=0.3, enable_gqa=True)


@pytest.mark.parametrize(("width", "prompt"), [(1, 0), (5, 4), (64, 0), (65, 9), (200, 30)])
@pytest.mark.parametrize("ragged", [False, True])
def test_values_and_gradients_are_those_of_torchs_attention(width: int, prompt: int, ragged: bool) -> None:
    *inputs, gradient, seen = states(width, prompt, ragged=ragged)
    mine = results(lambda *x: attend_by_products(*x, seen, scaling=0.3), *inputs, gradient=gradient)
    theirs = results(lambda *x: fused(*x, seen), *inputs, gradient=gradient)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_in_bf16_it_is_as_near_to_the_truth_as_torchs_kernel() -> None:
    *inputs, gradient, seen = states(150, 20)
    inputs, gradient = [x.bfloat16() for x in inputs], gradient.bfloat16()
    truth = results(lambda *x: fused(*x, seen), *(x.double() for x in inputs), gradient=gradient.double())
    mine = results(lambda *x: attend_by_products(*x, seen, scaling=0.3), *inputs, gradient=gradient)
    theirs = results(lambda *x: fused(*x, seen), *inputs, gradient=gradient)
    for a, b, true in zip(mine, theirs, truth, strict=True):
        assert float((a.double() - true).norm()) < 1.5 * float((b.double() - true).norm())


def test_only_bf16_on_a_cpu_and_short_rows_take_it() -> None:
    query = torch.zeros(1)
    assert pays(query.bfloat16(), attention_products.LONGEST)
    assert not pays(query.bfloat16(), attention_products.LONGEST + 1)
    assert not pays(query, 8)
    assert not pays(query.bfloat16().to("meta"), 8)


@pytest.mark.parametrize("longest", [0, 1024], ids=["fused", "products"])
def test_packed_responses_in_bf16_have_the_logprobs_that_they_have_alone(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_products, "LONGEST", longest)
    model = llama_model().to(torch.bfloat16)
    prompt, others = (5, 9, 11, 4), [(7, 3, 20, 33, 6), (8,), (12, 12, 13)]
    packed = predicted_logprobs(model, pack([(prompt, own) for own in others]), temperature=1.0)
    alone = []
    for own in others:
        mask = torch.tensor([[0] * len(prompt) + [1] * len(own)])
        alone.append(sequence_logprobs(model, torch.tensor([[*prompt, *own]]), mask, temperature=1.0)[mask.bool()])
    assert float((packed - torch.cat(alone).float()).detach().abs().max()) < 0.05
