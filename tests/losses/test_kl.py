import math

import pytest
import torch

from posttrain.losses.kl import ESTIMATORS

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
GRADIENT = [0.098938, -0.093885, -0.005053]


def softmax_policy(seed: int, size: int = 6) -> torch.Tensor:
    """Random, and so flat that no estimate reaches the limits of k3."""
    return torch.softmax(
        0.7 * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1
    )


def kl_gradient(pi: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Closed form for the logits of pi: d KL(pi || ref) / d z_i = pi_i (u_i - KL), u = log pi - log ref."""
    u = pi.log() - ref.log()
    return pi * (u - (pi * u).sum())


def in_the_loss(name: str, pi: torch.Tensor, ref: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Gradient for the logits of pi of E_{y ~ old}[estimate]: sampling is not differentiated."""
    logits = pi.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    (old * ESTIMATORS[name](logprobs, ref.log(), old.log())).sum().backward()
    return logits.grad


def in_the_reward(name: str, pi: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """E_{y ~ pi}[estimate * grad log pi]: what REINFORCE makes of an estimate in the reward."""
    logits = pi.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    values = ESTIMATORS[name](logprobs, ref.log(), pi.log()).detach()
    (pi * values * logprobs).sum().backward()
    return logits.grad


def moments(name: str) -> tuple[float, float]:
    values = ESTIMATORS[name](PI.log(), REF.log(), PI.log())
    mean = (PI * values).sum()
    return mean.item(), math.sqrt((PI * (values - mean) ** 2).sum().item())


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("k1", 0.0252672, 0.221554),
        ("k2", 0.0248624, 0.014335),
        ("k3", 0.0252672, 0.015956),
        # On-policy the ratio is 1.
        ("k3_corrected", 0.0252672, 0.015956),
    ],
)
def test_values(name, mean, std):
    """UT 4"""
    assert moments(name) == pytest.approx((mean, std), abs=1e-6)


def test_both_directions_of_the_divergence():
    """UT 4"""
    assert (PI * (PI.log() - REF.log())).sum().item() == pytest.approx(0.0252672, abs=1e-7)
    assert (REF * (REF.log() - PI.log())).sum().item() == pytest.approx(0.0258154, abs=1e-7)
    assert kl_gradient(PI, REF).tolist() == pytest.approx(GRADIENT, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed):
    pi, ref = softmax_policy(seed), softmax_policy(seed + 100)
    divergence = (pi * (pi.log() - ref.log())).sum().item()
    means = {name: (pi * f(pi.log(), ref.log(), pi.log())).sum().item() for name, f in ESTIMATORS.items()}
    assert [means[name] for name in ("k1", "k3", "k3_corrected")] == pytest.approx([divergence] * 3)
    assert means["k2"] != pytest.approx(divergence, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [("k1", [0.0, 0.0, 0.0]), ("k2", GRADIENT), ("k3", [0.1, -0.1, 0.0]), ("k3_corrected", GRADIENT)],
)
def test_gradients_in_the_loss(name, gradient):
    """UT 4: only k2 and the corrected k3 have the gradient of KL(pi || ref)."""
    assert in_the_loss(name, PI, REF, PI).tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_gradients_in_the_loss_in_closed_form(seed):
    """k3 has the gradient of the other direction, KL(ref || pi), which is pi - ref."""
    pi, ref = softmax_policy(seed), softmax_policy(seed + 100)
    right = kl_gradient(pi, ref)
    expected = {"k1": torch.zeros(6).double(), "k2": right, "k3": pi - ref, "k3_corrected": right}
    for name in ESTIMATORS:
        torch.testing.assert_close(in_the_loss(name, pi, ref, pi), expected[name])


@pytest.mark.parametrize("seed", range(5))
def test_off_policy_only_the_corrected_one_is_right(seed):
    """Samples of an older policy: rho k3 has the gradient of KL(pi || ref), and no other estimator has."""
    pi, ref, old = (softmax_policy(seed + offset) for offset in (0, 100, 200))
    right = kl_gradient(pi, ref)
    torch.testing.assert_close(in_the_loss("k3_corrected", pi, ref, old), right)
    for name in ("k1", "k2", "k3"):
        assert (in_the_loss(name, pi, ref, old) - right).norm() > 0.05 * right.norm()


@pytest.mark.parametrize("seed", range(5))
def test_in_the_reward_only_k1_is_right(seed):
    """k3 there has the difference of both directions' gradients, which vanishes to first order: it hardly pulls."""
    pi, ref = softmax_policy(seed), softmax_policy(seed + 100)
    right = kl_gradient(pi, ref)
    torch.testing.assert_close(in_the_reward("k1", pi, ref), right)
    torch.testing.assert_close(in_the_reward("k3", pi, ref), right - (pi - ref))
    assert (in_the_reward("k2", pi, ref) - right).norm() > 0.05 * right.norm()


def test_gradients_in_the_reward_by_hand():
    """UT 4's policies: k3's is GRADIENT - [.1, -.1, 0], a hundredth of the right one in its first component."""
    assert in_the_reward("k1", PI, REF).tolist() == pytest.approx(GRADIENT, abs=1e-6)
    assert in_the_reward("k3", PI, REF).tolist() == pytest.approx([-0.001062, 0.006115, -0.005053], abs=2e-6)
    # Near the reference the pull of k3 is of second order: ten times nearer, a hundred times weaker.
    near, nearer = (torch.softmax(REF.log() + size * (PI - REF), -1) for size in (0.1, 0.01))
    ratio = in_the_reward("k3", near, REF).norm() / in_the_reward("k3", nearer, REF).norm()
    assert ratio.item() == pytest.approx(100, rel=0.05)


def test_k3_adds_the_reference_to_the_advantage():
    """DeepSeekMath, eq. 21: with beta k3 in the loss a token's coefficient is A + beta (ref / pi - 1)."""
    logprobs = PI.log().requires_grad_()
    ESTIMATORS["k3"](logprobs, REF.log(), PI.log()).sum().backward()
    torch.testing.assert_close(-logprobs.grad, REF / PI - 1.0)


@pytest.mark.parametrize("name", ["k2", "k3", "k3_corrected"])
def test_autograd_agrees_with_differences(name):
    policy = PI.log().requires_grad_()
    torch.autograd.gradcheck(lambda x: ESTIMATORS[name](x, REF.log(), softmax_policy(3, 3).log()), (policy,))


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
