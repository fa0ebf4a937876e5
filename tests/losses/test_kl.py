import math

import pytest
import torch

from posttrain.losses.kl import ESTIMATORS

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
GRADIENT = [0.098938, -0.093885, -0.005053]


def expectation(name: str) -> tuple[float, float, torch.Tensor]:
    """(mean, std, mean gradient w.r.t. logits) of an estimator over the exact distribution."""
    logits = PI.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    values = ESTIMATORS[name](logprobs, REF.log(), PI.log())
    (PI * values).sum().backward()
    mean = (PI * values).sum().item()
    return mean, math.sqrt((PI * (values - mean) ** 2).sum().item()), logits.grad


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("k1", 0.0252672, 0.221554), ("k2", 0.0248624, 0.014335), ("k3", 0.0252672, 0.015956)]
)
def test_values(name, mean, std):
    """UT 4"""
    assert expectation(name)[:2] == pytest.approx((mean, std), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("k1", [0.0, 0.0, 0.0]), ("k2", GRADIENT), ("k3", [0.1, -0.1, 0.0]), ("k3_corrected", GRADIENT)],
)
def test_gradients_in_the_loss(name, gradient):
    """UT 4: only k2 and the corrected k3 have the gradient of KL(pi || ref)."""
    assert expectation(name)[2].tolist() == pytest.approx(gradient, abs=1e-6)


def test_the_gradient_is_that_of_the_exact_divergence():
    logits = PI.log().requires_grad_()
    p = torch.softmax(logits, -1)
    (p * (p.log() - REF.log())).sum().backward()
    assert logits.grad.tolist() == pytest.approx(GRADIENT, abs=1e-6)


def test_single_token():
    """UT 4: pi .5, ref .25."""
    policy, reference = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    values = {name: estimator(policy, reference, policy).item() for name, estimator in ESTIMATORS.items()}
    expected = {"k1": 0.693147, "k2": 0.240227, "k3": 0.193147, "k3_corrected": 0.193147}
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_policies_have_no_divergence(name):
    assert ESTIMATORS[name](PI.log(), PI.log(), PI.log()).abs().max() == 0


def test_a_token_the_policy_hardly_knows_does_not_explode():
    assert ESTIMATORS["k3"](torch.tensor(-90.0), torch.tensor(-1.0), torch.tensor(-90.0)).item() == 10.0
