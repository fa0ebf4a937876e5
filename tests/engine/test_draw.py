"""Tokens drawn from logits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from posttrain.engine import draw as draw_module
from posttrain.engine.draw import choose, draw, draw_by_blocks


def test_sampled_frequencies_are_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, 0.0, -float("inf")])
    draws, temperature = 40000, 0.5
    uniform_B = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen_B, logprobs_B = choose(logits.expand(draws, -1).clone(), uniform_B, temperature=temperature)
    wanted = torch.softmax(logits / temperature, -1)
    counts = Counter(chosen_B.tolist())
    assert counts[4] == 0
    for token in range(4):
        spread = (wanted[token] * (1 - wanted[token]) / draws).sqrt()
        assert abs(counts[token] / draws - wanted[token]) < 4 * spread
    torch.testing.assert_close(logprobs_B, wanted.log()[chosen_B])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_stay_as_they_are_and_log_probabilities_are_theirs(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits_BV = (4 * torch.randn((50, 30), generator=generator)).to(dtype)
    before_BV, uniform_B = logits_BV.clone(), torch.rand(50, dtype=torch.float64, generator=generator)
    chosen_B, logprobs_B = choose(logits_BV, uniform_B if temperature else None, temperature=temperature)
    assert torch.equal(logits_BV, before_BV)
    wanted_BV = torch.log_softmax(before_BV.double() / (temperature or 1.0), -1)
    torch.testing.assert_close(logprobs_B.double(), wanted_BV.gather(1, chosen_B[:, None])[:, 0], atol=1e-6, rtol=1e-6)


def test_the_ends_of_the_unit_interval_choose_possible_tokens() -> None:
    logits_BV = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]] * 2)
    uniform_B = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(logits_BV, uniform_B, temperature=1.0)[0].tolist() == [1, 2]


@pytest.mark.parametrize("width", [8, 16, 19])
def test_by_blocks_the_same_tokens_are_drawn(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(draw_module, "_BLOCK", 4)
    generator = torch.Generator().manual_seed(width)
    weights_BV = torch.rand((5000, width), generator=generator) ** 8
    weights_BV[:, 3:6] = 0.0
    uniform_B1 = torch.rand((5000, 1), dtype=torch.float64, generator=generator)
    (chosen, total), (by_blocks, sums) = (some(weights_BV, uniform_B1) for some in (draw, draw_by_blocks))
    torch.testing.assert_close(sums, total)
    # A number within a rounding of a boundary may fall on its other side.
    assert float((chosen == by_blocks).double().mean()) > 0.999
    assert bool((weights_BV.gather(1, by_blocks) > 0).all())


def test_by_blocks_the_ends_of_the_unit_interval_choose_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module, "_BLOCK", 4)
    weights_BV = torch.zeros((2, 16))
    weights_BV[:, [5, 10]] = 1.0
    uniform_B1 = torch.tensor([[0.0], [1.0 - 2**-53]], dtype=torch.float64)
    assert draw_by_blocks(weights_BV, uniform_B1)[0].tolist() == [[5], [10]]


def test_a_large_vocabulary_is_drawn_from_by_blocks() -> None:
    logits_BV = torch.full((3, 5000), -30.0)
    logits_BV[[0, 1, 2], [0, 2047, 4999]] = 30.0
    uniform_B = torch.full((3,), 0.5, dtype=torch.float64)
    chosen_B, logprobs_B = choose(logits_BV, uniform_B, temperature=1.0)
    assert chosen_B.tolist() == [0, 2047, 4999]
    torch.testing.assert_close(logprobs_B, torch.zeros(3), atol=1e-6, rtol=0)
