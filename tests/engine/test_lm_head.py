"""The LM head over a large vocabulary: values and gradients of the plain computation, and where it stays plain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.engine import lm_head
from posttrain.engine.lm_head import project, read_in_parts, reads_in_parts

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


TARGETS = torch.tensor([3, 8999, 0, 17, 3, 4500, 1])
WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.0, -3.0, 0.25, 1.5])
"""Of the tokens in a loss."""


@pytest.fixture
def three_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At most three tokens have their logits at a time, two are read at once; the rows of every product."""
    multiplied = []

    def counted(hidden_PC: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        multiplied.append(len(hidden_PC))
        return multiply(hidden_PC, *others)

    multiply = lm_head._multiply
    monkeypatch.setattr(lm_head, "_multiply", counted)
    monkeypatch.setattr(lm_head, "_PART_BYTES", 3 * LARGE * 4)
    monkeypatch.setattr(lm_head, "_ROWS_ELEMENTS", 2 * LARGE)
    return multiplied


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_read_in_parts_have_the_values_and_gradients_of_a_log_softmax(
    temperature: float, three_rows_at_once: list[int]
) -> None:
    module, precise = head(), head().double()
    states, precise_states = hidden(), hidden().detach().double().requires_grad_()
    wanted = torch.distributions.Categorical(logits=precise(precise_states) / temperature)
    (wanted.log_prob(TARGETS) * WEIGHTS).sum().backward()
    found, entropy = read_in_parts(module, states, TARGETS, temperature=temperature)
    (found * WEIGHTS).sum().backward()
    for value, by in (
        (found, wanted.log_prob(TARGETS)),
        (entropy, wanted.entropy()),
        (states.grad, precise_states.grad),
        (module.weight.grad, precise.weight.grad),
    ):
        assert value is not None and by is not None
        torch.testing.assert_close(value.double(), by, rtol=1e-5, atol=1e-6)
    assert not entropy.requires_grad


def test_bf16_rounds_logits_and_their_gradient_only() -> None:
    module, states = head().to(torch.bfloat16), hidden().detach().to(torch.bfloat16).requires_grad_()
    found, _ = read_in_parts(module, states, TARGETS, temperature=1.0)
    (found * WEIGHTS).sum().backward()
    logits = module(states).detach().float()
    torch.testing.assert_close(found.detach(), torch.log_softmax(logits, -1).gather(1, TARGETS[:, None])[:, 0])
    by_logits = (torch.nn.functional.one_hot(TARGETS, LARGE) - torch.softmax(logits, -1)) * WEIGHTS[:, None]
    by_states, by_weight = (
        by_logits.double() @ module.weight.detach().double(),
        by_logits.double().T @ states.detach().double(),
    )
    for value, by in ((states.grad, by_states), (module.weight.grad, by_weight)):
        assert value is not None
        assert float((value.double() - by).norm() / by.norm()) < 0.005


def test_few_logits_are_held_and_the_last_ones_not_made_again(three_rows_at_once: list[int]) -> None:
    states = hidden()
    found, _ = read_in_parts(head(), states, TARGETS, temperature=1.0)
    assert three_rows_at_once == [3, 3, 1]
    found.sum().backward(retain_graph=True)
    assert three_rows_at_once[3:] == [3, 3]
    once = states.grad.clone()  # type: ignore[union-attr]
    found.sum().backward()
    assert three_rows_at_once[5:] == [1, 3, 3]
    torch.testing.assert_close(states.grad, 2 * once)


def test_no_tokens_are_read_as_none() -> None:
    module, states = head(), hidden(0)
    found, _ = read_in_parts(module, states, TARGETS[:0], temperature=1.0)
    found.sum().backward()
    assert found.shape == (0,) and not module.weight.grad.any()  # type: ignore[union-attr]


def test_only_what_is_trained_gets_a_gradient() -> None:
    module, states = head().requires_grad_(False), hidden()
    read_in_parts(module, states, TARGETS, temperature=1.0)[0].sum().backward()
    assert module.weight.grad is None and states.grad is not None
    module, states = head(), hidden().detach()
    read_in_parts(module, states, TARGETS, temperature=1.0)[0].sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("module", [head(512), head(bias=True), nn.Sequential(head())], ids=["small", "bias", "other"])
def test_heads_that_are_not_read_in_parts(module: nn.Module) -> None:
    assert reads_in_parts(head(), hidden())
    assert not reads_in_parts(module, hidden())
    assert not reads_in_parts(head(), hidden().to(torch.bfloat16))
