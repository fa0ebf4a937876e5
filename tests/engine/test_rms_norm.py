"""Fused norms: values and gradients of the norms that they replace, and what is not replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from posttrain.engine.rms_norm import _RmsNorm, fuse_norms
from tests.engine.conftest import llama_model, micro_model

STATES = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))


def norm() -> LlamaRMSNorm:
    made = LlamaRMSNorm(16, eps=1e-3)
    with torch.no_grad():
        made.weight.copy_(torch.randn(16, generator=torch.Generator().manual_seed(1)))
    return made


def run(module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and the gradients of input and weight."""
    states = STATES.clone().requires_grad_()
    values = module(states)
    (values * torch.arange(16.0)).square().sum().backward()
    assert states.grad is not None and module.weight.grad is not None
    return values.detach(), states.grad, module.weight.grad


def test_values_and_gradients_are_those_of_the_models_own_norm() -> None:
    fused = norm()
    assert fuse_norms(fused) == 1
    for a, b in zip(run(norm()), run(fused), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    states, weight = (torch.randn(n, 6, dtype=torch.float64, generator=generator, requires_grad=True) for n in (4, 1))
    assert torch.autograd.gradcheck(lambda x, w: _RmsNorm.apply(x, w[0], 1e-2), (states, weight))


@pytest.mark.parametrize(("model", "count"), [(micro_model(), 9), (llama_model(), 5)], ids=["qwen3", "llama"])
def test_all_norms_of_a_model_are_fused_once_and_copies_have_their_own_weights(model: nn.Module, count: int) -> None:
    assert fuse_norms(model) == count
    assert fuse_norms(model) == 0
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    ids = torch.tensor([[3, 4, 5]])
    assert not torch.allclose(model(input_ids=ids).logits, other(input_ids=ids).logits)
    assert list(model.state_dict()) == list(micro_model().state_dict()) or count == 5


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    gemma = GemmaRMSNorm(16)
    gemma.variance_epsilon = 1e-6
    assert fuse_norms(nn.ModuleList([gemma, nn.LayerNorm(16)])) == 0


def test_in_bf16_values_are_the_models_own_and_gradients_within_its_rounding() -> None:
    fused, own = norm().to(torch.bfloat16), norm().to(torch.bfloat16)
    assert fuse_norms(fused) == 1
    generator = torch.Generator().manual_seed(3)
    states, gradient = (torch.randn(7, 300, 16, generator=generator).to(torch.bfloat16) for _ in range(2))
    found = [bf16_gradients(module, states, gradient) for module in (fused, own)]
    exact = norm().double()
    exact.load_state_dict(own.state_dict())
    wanted = bf16_gradients(exact, states.double(), gradient.double())
    assert torch.equal(found[0][0], found[1][0])
    for mine, theirs, true in zip(*found, wanted, strict=True):
        error, own_error = (float((x.double() - true).norm() / true.norm()) for x in (mine, theirs))
        assert error < 2 * own_error < 0.01


def bf16_gradients(module: nn.Module, states: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    states = states.clone().requires_grad_()
    values = module(states)
    values.backward(gradient)
    assert states.grad is not None and module.weight.grad is not None
    return values.detach(), states.grad, module.weight.grad


def test_another_precision_is_left_to_the_models_own_norm() -> None:
    fused = norm().double()
    fuse_norms(fused)
    assert torch.equal(fused(STATES.double()), norm().double()(STATES.double()))
