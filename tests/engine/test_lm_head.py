"""The LM head over a large vocabulary: values and gradients of the plain product, and where it stays plain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.engine import lm_head
from posttrain.engine.lm_head import project

LARGE = 9000  # neither a multiple of the block nor below what counts as large


def head(vocabulary: int = LARGE, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, vocabulary, bias=bias)


def hidden(rows: int = 7) -> torch.Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)


def test_values_and_gradients_are_those_of_the_plain_product() -> None:
    plain, blocked = head(), head()
    results = []
    for module, product in ((plain, plain.double()), (blocked, None)):
        states = hidden().detach().to(module.weight.dtype).requires_grad_()
        logits = product(states) if product is not None else project(module, states)
        (logits * torch.linspace(-1, 1, LARGE)).square().sum().backward()
        results.append((logits.detach(), states.grad, module.weight.grad))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    module = head()
    assert torch.allclose(project(module, hidden(rows)), module(hidden(rows)), atol=1e-6)


def test_frozen_weights_get_no_gradient() -> None:
    module, states = head().requires_grad_(False), hidden()
    project(module, states).sum().backward()
    assert module.weight.grad is None and states.grad is not None


@pytest.mark.parametrize(
    "module",
    [head(512), head(bias=True), head().to(torch.bfloat16), nn.Sequential(head())],
    ids=["small", "bias", "bf16", "other class"],
)
def test_others_are_called_as_they_are(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head._ByBlocks, "apply", lambda *_: pytest.fail("by blocks"))
    states = hidden().detach().to(next(module.parameters()).dtype)
    assert torch.equal(project(module, states), module(states))
