"""Estimators of KL(policy || reference) per sampled token (John Schulman, "Approximating KL divergence", 2020).

Value and gradient are two questions. Differentiated in the loss, k1 has gradient zero in expectation, k2 the right one,
k3 that of KL(reference || policy); `k3_corrected`, weighted by the ratio, is right on- and off-policy.
In the reward, where no gradient flows through it, k1 is right and the others are not.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

EXPONENT_LIMIT = 20.0
VALUE_LIMIT = 10.0
"""k3 explodes where the policy finds a token far less likely than the reference does."""


def k1(policy_BT: Tensor, reference_BT: Tensor, old_BT: Tensor) -> Tensor:
    """u = log pi - log ref: unbiased, and negative for some samples."""
    return policy_BT - reference_BT


def k2(policy_BT: Tensor, reference_BT: Tensor, old_BT: Tensor) -> Tensor:
    """u^2 / 2."""
    return 0.5 * (policy_BT - reference_BT).square()


def k3(policy_BT: Tensor, reference_BT: Tensor, old_BT: Tensor) -> Tensor:
    """exp(-u) - 1 + u: unbiased and never negative."""
    u_BT = policy_BT - reference_BT
    return ((-u_BT).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp() - 1.0 + u_BT).clamp(-VALUE_LIMIT, VALUE_LIMIT)


def k3_corrected(policy_BT: Tensor, reference_BT: Tensor, old_BT: Tensor) -> Tensor:
    """rho k3 with the gradient through rho = pi / pi_old: the gradient of KL(policy || reference) (DeepSeek-V3.2)."""
    ratio_BT = (policy_BT - old_BT).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()
    return ratio_BT * k3(policy_BT, reference_BT, old_BT)


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_corrected": k3_corrected,
}
