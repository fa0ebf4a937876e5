"""Lean feed-forward parts: bit for bit what the model's own compute, with less kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP

from posttrain.engine.gated import keep_less
from tests.engine.conftest import llama_model, micro_model

IDS = torch.tensor([[3, 4, 5, 6], [7, 3, 5, 4]])


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model: nn.Module) -> int:
    """Of distinct tensors that are kept for the backward pass and are not weights."""
    storages: dict[int, int] = {}

    def pack(kept: Tensor) -> Tensor:
        storages[kept.untyped_storage().data_ptr()] = kept.untyped_storage().nbytes()
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        output: Any = model(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert output.requires_grad
    return sum(size for where, size in storages.items() if where not in weights)


@pytest.mark.parametrize("make", [micro_model, llama_model])
@pytest.mark.parametrize("frozen", [(), ("down_proj",), ("gate_proj", "up_proj")])
def test_loss_and_gradients_are_those_of_the_models_own_bit_for_bit(make: Any, frozen: tuple[str, ...]) -> None:
    plain = make()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == plain.config.num_hidden_layers
    assert keep_less(lean) == 0
    wanted, found = gradients(plain), gradients(lean)
    assert list(wanted) == list(found)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, lean(input_ids=IDS).logits)


def test_a_second_backward_pass_through_the_same_graph_gives_the_same() -> None:
    lean = micro_model()
    keep_less(lean)
    loss = lean(input_ids=IDS, labels=IDS).loss
    weights = [p for p in lean.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, weights), strict=True))


def test_neither_the_activation_nor_the_product_is_kept() -> None:
    model = llama_model()
    part = model.model.layers[0].mlp
    part.gate_proj = nn.Linear(16, 48, bias=False)
    part.up_proj = nn.Linear(16, 48, bias=False)
    part.down_proj = nn.Linear(48, 16, bias=False)
    before = kept_bytes(part)
    assert keep_less(part) == 1
    wide, narrow = 64 * 48 * 4, 64 * 16 * 4
    assert before == 4 * wide + narrow
    assert kept_bytes(part) == 2 * wide + narrow


def test_a_backward_pass_frees_what_was_kept_though_the_loss_lives_on() -> None:
    model = llama_model()
    keep_less(model)
    gates: list[StorageWeakRef] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(
            lambda *args: gates.append(StorageWeakRef(args[-1].untyped_storage()))
        )
    loss = model(input_ids=IDS, labels=IDS).loss
    assert gates
    assert not any(gate.expired() for gate in gates)
    loss.backward()
    assert loss.grad_fn is not None
    assert all(gate.expired() for gate in gates)


def test_another_activation_is_left_alone() -> None:
    gemma = GemmaMLP(GemmaConfig(hidden_size=16, intermediate_size=32, hidden_act="gelu_pytorch_tanh"))
    assert keep_less(nn.ModuleList([gemma, nn.Linear(16, 16)])) == 0
