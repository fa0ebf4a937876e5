"""The methods on the worked pair of tests.losses.test_preference: S = -10, -12; R = -11, -11.5; 5 and 10 tokens."""

import math

import pytest
import torch

from posttrain.config_align import Align
from posttrain.engine.packing import pack
from posttrain.loops.preference import PairBatch, pair_terms
from posttrain.loops.preference_methods import METHODS
from tasks.align import METHODS as TRAINED_BY
from tests.loops.test_preference import NUMBERS, section

RESPONSES = pack([((1,), (2,) * 5), ((1,), (3,) * 10)])
BATCH = PairBatch(RESPONSES, torch.tensor([-11.0]), torch.tensor([-11.5]))


def loss_of(kind, *, chosen=-10.0, rejected=-12.0, baseline=0.0, **numbers):
    chosen_B, rejected_B = torch.tensor([chosen], requires_grad=True), torch.tensor([rejected], requires_grad=True)
    terms = pair_terms(BATCH, chosen_B, rejected_B, torch.tensor(baseline), METHODS[kind])
    loss = METHODS[kind].loss(terms, section(kind, **numbers).method).sum()
    loss.backward()
    return loss.item(), (chosen_B.grad.item(), rejected_B.grad.item())


def odds(mean: float) -> float:
    return math.exp(mean) / (1 - math.exp(mean))


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("dpo", {"beta": 0.1}, 0.620957),
        ("cdpo", {"beta": 0.1, "flip_rate": 0.1}, 0.635957),
        ("robust_dpo", {"beta": 0.1, "flip_rate": 0.1}, 0.602207),
        ("dpo_norm", {"beta": 5.0}, 0.251929),
        ("ipo", {"beta": 0.1}, 12.25),
        ("ipo_norm", {"beta": 0.1}, 22.5625),
        ("simpo", {"beta": 2.0, "gamma": 1.0}, 2.671645),
        # Means -2 and -1.2.
        ("orpo", {"beta": 0.1}, 2.0 + 0.1 * math.log1p(odds(-1.2) / odds(-2.0))),
        # Log-ratios 1 and -.5, with z0 = .2: UT 2.6.
        ("kto", {"beta": 0.1, "baseline": 0.2}, (0.480011 + 0.482507) / 2),
    ],
)
def test_worked_pair(kind, numbers, expected):
    assert loss_of(kind, **numbers)[0] == pytest.approx(expected, rel=1e-5)


def test_every_kind_of_the_configuration_is_trained():
    union = Align.model_fields["method"].annotation
    kinds = {kind for choice in union.__args__ for kind in choice.model_fields["kind"].annotation.__args__}
    assert kinds == set(TRAINED_BY) == set(METHODS) | {"ppo", "grpo_rm"}
    assert set(METHODS) == set(NUMBERS)


@pytest.mark.parametrize("kind", METHODS)
def test_the_chosen_one_is_pulled_up_and_the_rejected_one_pushed_down(kind):
    _, (chosen, rejected) = loss_of(kind)
    assert chosen < 0 < rejected


@pytest.mark.parametrize("kind", ["dpo_norm", "ipo_norm", "simpo"])
def test_per_token_a_long_response_weighs_no_more(kind):
    """The rejected one has twice the tokens: a nat of its sum moves the loss half as much."""
    _, (chosen, rejected) = loss_of(kind)
    assert chosen == pytest.approx(-2 * rejected)


@pytest.mark.parametrize("kind", METHODS)
def test_who_looks_at_the_reference(kind):
    other = PairBatch(RESPONSES, torch.tensor([-9.0]), torch.tensor([-13.0]))
    sums = torch.tensor([-10.0]), torch.tensor([-12.0])
    losses = [
        METHODS[kind].loss(pair_terms(b, *sums, torch.tensor(0.0), METHODS[kind]), section(kind).method).item()
        for b in (BATCH, other)
    ]
    assert (losses[0] != losses[1]) is METHODS[kind].reference
