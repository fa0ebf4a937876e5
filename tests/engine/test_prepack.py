"""Weights laid out for decoding multiply as the layers themselves do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.engine.prepack import prepacked


def network(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(96, 200, bias=False), nn.SiLU(), nn.Linear(200, 37)).to(dtype)


@pytest.mark.parametrize("shape", [(1, 96), (5, 96), (64, 1, 96), (3, 150, 96)])
def test_products_are_the_same_to_the_bit(shape: tuple[int, ...]) -> None:
    model, states = network(), torch.randn(shape).bfloat16()
    with torch.inference_mode():
        wanted = model(states)
        with prepacked(model, products=64):
            found = model(states)
    assert found.shape == wanted.shape
    assert torch.equal(found, wanted)


def test_a_changed_weight_is_not_seen_inside_and_is_seen_afterwards() -> None:
    model, states = network(), torch.randn((5, 96)).bfloat16()
    with torch.no_grad():
        before = model(states)
        with prepacked(model, products=64):
            model[0].weight.mul_(2.0)
            assert torch.equal(model(states), before)
        assert not torch.equal(model(states), before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_few_products_do_not_pay() -> None:
    model = network()
    with prepacked(model, products=2):
        assert all("forward" not in vars(module) for module in model.modules())


def test_gradients_are_those_of_the_layers() -> None:
    model, states = network(), torch.randn((5, 96)).bfloat16()

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(states).float().sum(), list(model.parameters())))

    wanted = gradients()
    with prepacked(model, products=64):
        assert all(map(torch.equal, gradients(), wanted))


def test_fp32_is_left_alone() -> None:
    model, states = network(torch.float32), torch.randn((5, 96))
    with torch.inference_mode(), prepacked(model, products=64):
        assert all("forward" not in vars(module) for module in model.modules())
        assert torch.isfinite(model(states)).all()


def test_layers_are_themselves_again_after_an_error() -> None:
    model = network()
    with pytest.raises(ZeroDivisionError), prepacked(model, products=64):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())
