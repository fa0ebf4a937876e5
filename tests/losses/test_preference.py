"""One worked pair: S_c=-10, S_r=-12, R_c=-11, R_r=-11.5, L_c=5, L_r=10; h = 1.5, per token .25."""

import math

import pytest
import torch

from posttrain.losses.preference import (
    bradley_terry,
    cdpo,
    dpo,
    dpo_norm,
    ipo,
    ipo_norm,
    kto,
    kto_baseline,
    log_ratio_margin,
    orpo,
    orpo_odds,
    robust_dpo,
    simpo,
)


def value(number: float) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.float64, requires_grad=True)


H, H_TOKEN = torch.tensor([1.5]).double(), torch.tensor([0.25]).double()
PLAIN_KTO = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo():
    """UT 2.1"""
    chosen, rejected, reference = value(-10), value(-12), value(-11)
    margin = log_ratio_margin(chosen, rejected, reference.detach(), torch.tensor([-11.5]).double())
    assert margin.item() == 1.5
    loss = dpo(margin, beta=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.620957, abs=1e-6)
    assert chosen.grad.item() == pytest.approx(-0.046257, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.046257, abs=1e-6)
    assert dpo(torch.zeros(1), beta=0.1).item() == pytest.approx(math.log(2))


def test_the_optimum_of_dpo_on_a_table():
    """UT 2.1: ref (.5, .5), rewards (1, 0), beta 1: gradient descent on the expected loss finds pi* = softmax(r)."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        logprobs = torch.log_softmax(logits, -1)
        margin = logprobs[:1] - logprobs[1:]
        # The first is preferred with probability sigmoid(r_1 - r_2) = .731.
        wins = 1 / (1 + math.exp(-1))
        loss = wins * dpo(margin, beta=1.0) + (1 - wins) * dpo(-margin, beta=1.0)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert torch.softmax(logits, -1).tolist() == pytest.approx([0.731059, 0.268941], abs=1e-5)


def test_noisy_labels():
    """UT 2.2"""
    assert cdpo(H, beta=0.1, flip_rate=0.1).item() == pytest.approx(0.635957, abs=1e-6)
    assert robust_dpo(H, beta=0.1, flip_rate=0.1).item() == pytest.approx(0.602207, abs=1e-6)
    for loss in (cdpo, robust_dpo):
        assert loss(H, beta=0.1, flip_rate=0.0).item() == pytest.approx(dpo(H, beta=0.1).item())
    mixed = 0.9 * robust_dpo(H, beta=0.1, flip_rate=0.1) + 0.1 * robust_dpo(-H, beta=0.1, flip_rate=0.1)
    torch.testing.assert_close(mixed, dpo(H, beta=0.1))


def test_length_normalised_dpo():
    """UT 2.3"""
    assert dpo_norm(H_TOKEN, beta=5.0).item() == pytest.approx(0.251929, abs=1e-6)


def test_simpo():
    """UT 2.4: diff -.8, beta 2, gamma/beta .5"""
    assert simpo(torch.tensor([-2.0]), torch.tensor([-1.2]), beta=2.0, gamma=1.0).item() == pytest.approx(
        2.671645, abs=1e-6
    )


def test_ipo():
    """UT 2.5"""
    assert ipo(H, beta=0.1).item() == pytest.approx(12.25)
    assert ipo_norm(H_TOKEN, beta=0.1).item() == pytest.approx(22.5625)
    assert ipo(torch.tensor([5.0]), beta=0.1).item() == pytest.approx(0.0)


def test_kto():
    """UT 2.6"""
    losses = kto(torch.tensor([1.0, -0.5]), torch.tensor([True, False]), torch.tensor(0.2), **PLAIN_KTO)
    assert losses.tolist() == pytest.approx([0.480011, 0.482507], abs=1e-6)
    assert kto_baseline(torch.tensor([0.5, -0.1], requires_grad=True)).item() == pytest.approx(0.2)
    assert kto_baseline(torch.tensor([-0.5, -0.1])).item() == 0.0
    assert not kto_baseline(torch.tensor([0.5], requires_grad=True)).requires_grad
    weighted = kto(
        torch.tensor([1.0, -0.5]), torch.tensor([True, False]), torch.tensor(0.2), beta=0.1, desirable_weight=2.0,
        undesirable_weight=3.0,
    )  # fmt: skip
    assert weighted.tolist() == pytest.approx([2 * 0.480011, 3 * 0.482507], abs=1e-5)


def test_orpo():
    """UT 2.7"""
    chosen, rejected = value(-0.5), value(-1.0)
    assert orpo_odds(chosen, rejected).item() == pytest.approx(0.320300, abs=1e-6)
    assert orpo(chosen, rejected, beta=0.1).item() == pytest.approx(0.5 + 0.032030, abs=1e-6)
    certain = value(0.0)
    loss = orpo_odds(certain, rejected)
    loss.sum().backward()
    assert math.isfinite(loss.item()) and math.isfinite(rejected.grad.item())


@pytest.mark.parametrize("mean", [-1e-4, -0.3, -math.log(2), -0.8, -30.0])
def test_the_odds_are_those_of_probabilities(mean):
    p, q = math.exp(mean), math.exp(-1.0)
    expected = math.log1p(math.exp(-(math.log(p / (1 - p)) - math.log(q / (1 - q)))))
    assert orpo_odds(value(mean), value(-1.0)).item() == pytest.approx(expected, rel=1e-6)


MARGIN_LOSSES = {
    "dpo": lambda h: dpo(h, beta=0.1),
    "dpo_norm": lambda h: dpo_norm(h, beta=5.0),
    "cdpo": lambda h: cdpo(h, beta=0.1, flip_rate=0.2),
    "robust_dpo": lambda h: robust_dpo(h, beta=0.1, flip_rate=0.2),
    "ipo": lambda h: ipo(h, beta=0.1),
    "ipo_norm": lambda h: ipo_norm(h, beta=0.1),
}
SLOPES = {
    "dpo": lambda h: -0.1 * sigmoid(-0.1 * h),
    "dpo_norm": lambda h: -5.0 * sigmoid(-5.0 * h),
    "cdpo": lambda h: -0.1 * (0.8 * sigmoid(-0.1 * h) - 0.2 * sigmoid(0.1 * h)),
    "robust_dpo": lambda h: -0.1 * (0.8 * sigmoid(-0.1 * h) + 0.2 * sigmoid(0.1 * h)) / 0.6,
    "ipo": lambda h: 2 * (h - 5.0),
    "ipo_norm": lambda h: 2 * (h - 5.0),
}
"""Of the losses above in the margin, by hand."""


@pytest.mark.parametrize("name", MARGIN_LOSSES)
@pytest.mark.parametrize("margin", [-3.0, 0.0, 1.5, 9.0])
def test_slopes_in_the_margin(name, margin):
    h = value(margin)
    MARGIN_LOSSES[name](h).sum().backward()
    assert h.grad.item() == pytest.approx(SLOPES[name](margin), rel=1e-9)


@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_what_a_margin_does_not_see(name):
    """The same added to both log-probabilities, of the policy or of the reference."""
    loss, four = MARGIN_LOSSES[name], torch.tensor([[-10.0], [-12.0], [-11.0], [-11.5]]).double()
    shifted = four + torch.tensor([[3.0], [3.0], [-7.0], [-7.0]]).double()
    torch.testing.assert_close(loss(log_ratio_margin(*four)), loss(log_ratio_margin(*shifted)))


def test_at_the_start_every_pair_costs_the_same():
    """The policy is the reference: h = 0."""
    start = torch.zeros(1).double()
    for name in ("dpo", "dpo_norm", "cdpo", "robust_dpo"):
        assert MARGIN_LOSSES[name](start).item() == pytest.approx(math.log(2))
    assert ipo(start, beta=0.1).item() == ipo_norm(start, beta=0.1).item() == pytest.approx(25.0)  # 1 / (2 beta)^2
    both = torch.tensor([True, False])
    assert kto(torch.zeros(2), both, torch.tensor(0.0), **PLAIN_KTO).tolist() == [0.5, 0.5]


def test_swapped_labels():
    """-log sigmoid(-x) = x - log sigmoid(x); a flip rate of 1 - e is a swap at e."""
    assert (dpo(-H, beta=0.1) - dpo(H, beta=0.1)).item() == pytest.approx(0.1 * 1.5)
    for loss in (cdpo, robust_dpo):
        torch.testing.assert_close(loss(-H, beta=0.1, flip_rate=0.2), loss(H, beta=0.1, flip_rate=0.8))
    assert ipo(-H, beta=0.1).item() == pytest.approx(6.5**2)


def test_slopes_without_a_reference():
    chosen, rejected = value(-2.0), value(-1.2)
    simpo(chosen, rejected, beta=2.0, gamma=1.0).sum().backward()
    assert chosen.grad.item() == pytest.approx(-2.0 * sigmoid(2.6))  # beta diff - gamma = -2.6
    assert rejected.grad.item() == pytest.approx(2.0 * sigmoid(2.6))
    torch.testing.assert_close(
        simpo(chosen + 0.7, rejected + 0.7, beta=2.0, gamma=1.0), simpo(chosen, rejected, beta=2.0, gamma=1.0)
    )
    chosen, rejected = value(-0.5), value(-1.0)
    orpo(chosen, rejected, beta=0.1).sum().backward()
    # d log(p / (1 - p)) / d log p = 1 / (1 - p)
    assert chosen.grad.item() == pytest.approx(-1.0 - 0.1 * sigmoid(-0.974077) / (1 - math.exp(-0.5)), rel=1e-5)
    assert rejected.grad.item() == pytest.approx(0.1 * sigmoid(-0.974077) / (1 - math.exp(-1.0)), rel=1e-5)


def test_slopes_of_kto():
    ratios = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
    numbers = {"beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    kto(ratios, torch.tensor([True, False]), torch.tensor(0.2).double(), **numbers).sum().backward()
    high, low = sigmoid(0.1 * 0.8), sigmoid(0.1 * 0.7)
    assert ratios.grad.tolist() == pytest.approx([-2 * 0.1 * high * (1 - high), 3 * 0.1 * low * (1 - low)])


def test_bradley_terry():
    """UT 1.1"""
    chosen, rejected, none = value(1.2), value(0.2), torch.zeros(1)
    loss = bradley_terry(chosen, rejected, none, centering=0.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert chosen.grad.item() == pytest.approx(-0.268941, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.268941, abs=1e-6)
    assert bradley_terry(chosen, rejected, none, centering=0.01).item() == pytest.approx(0.313262 + 0.0196, abs=1e-6)
    assert bradley_terry(chosen + 7, rejected + 7, none, centering=0.0).item() == pytest.approx(loss.item())
    # The two labels of a pair: losses of opposite margins differ by the margin.
    assert bradley_terry(rejected, chosen, none, centering=0.0).item() - loss.item() == pytest.approx(1.0)


def test_bradley_terry_with_a_margin():
    """UT 1.1, margin .5: the loss and, by dL/dr = -sigmoid(-(1 - .5)) = -.377541, its gradient."""
    chosen, rejected = value(1.2), value(0.2)
    loss = bradley_terry(chosen, rejected, torch.tensor([0.5]), centering=0.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)
    assert chosen.grad.item() == pytest.approx(-0.377541, abs=1e-6)
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry(c, r, torch.tensor([0.5]), centering=0.01), (chosen, rejected)
    )
