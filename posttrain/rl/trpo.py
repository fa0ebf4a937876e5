"""TRPO's step (arXiv 1502.05477), as a reference for small policies: the yardstick of the clipped losses.

Maximise the surrogate E[rho A] while the mean KL(pi_old || pi) stays within `max_kl`. The surrogate is linearised and
the KL is replaced by its second-order form, whose matrix is the Fisher matrix F, so that the direction is F^-1 g; then
the true surrogate and the true KL decide how far to go along it. PPO's clip (posttrain.losses.policy) wants the same
and bounds no KL.

Surrogate and KL are functions of one flat or shaped parameter tensor, differentiable twice. Left out: sampling (both
expectations are exact here), a value network, and anything that would scale this to a language model.

Shapes: S states (prompts), A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v -> M v of a symmetric matrix M."""
Objective = Callable[[Tensor], Tensor]
"""Parameters -> scalar."""


@dataclass(frozen=True, slots=True)
class TrpoStep:
    parameters: Tensor
    """Unchanged where no length of the step was accepted."""
    gain: float
    """Surrogate after the step minus before it."""
    kl: float
    """Mean KL(pi_old || pi) after the step, nats."""
    shrinks: int
    """How often the line search made the step smaller; its limit where none was accepted."""


def surrogate(logits_SA: Tensor, old_SA: Tensor, advantages_SA: Tensor, weights_S: Tensor) -> Tensor:
    """E_{s, a ~ pi_old}[rho A], exactly (eq. 14); `old_SA` are log-probabilities, `weights_S` sum to 1."""
    ratio_SA = (torch.log_softmax(logits_SA, -1) - old_SA).exp()
    return (weights_S * (old_SA.exp() * ratio_SA * advantages_SA).sum(-1)).sum()


def mean_kl(logits_SA: Tensor, old_SA: Tensor, weights_S: Tensor) -> Tensor:
    """Mean KL(pi_old || pi) over the states, in nats."""
    return (weights_S * (old_SA.exp() * (old_SA - torch.log_softmax(logits_SA, -1))).sum(-1)).sum()


def conjugate_gradient(product: Product, target: Tensor, *, iterations: int) -> Tensor:
    """x with M x = target, for a symmetric positive definite M; exact after as many iterations as M has rows.

    Stops early when the residual is gone: another iteration would divide zero by zero.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, squared = residual.clone(), (residual * residual).sum()
    for _ in range(iterations):
        if squared <= torch.finfo(target.dtype).eps ** 2 * (target * target).sum():
            break
        image = product(direction)
        length = squared / (direction * image).sum()
        solution = solution + length * direction
        residual = residual - length * image
        before, squared = squared, (residual * residual).sum()
        direction = residual + squared / before * direction
    return solution


def natural_step(gradient: Tensor, fisher: Product, *, max_kl: float, damping: float, iterations: int) -> Tensor:
    """sqrt(2 max_kl / (x^T F x)) x with (F + damping) x = gradient (appendix C); 0 for a gradient of 0.

    Damping makes the matrix invertible: a softmax does not change when all its logits grow alike. The length comes
    from F itself, so that the quadratic KL of the step is exactly max_kl.
    """
    direction = conjugate_gradient(lambda v: fisher(v) + damping * v, gradient, iterations=iterations)
    curvature = (direction * fisher(direction)).sum()
    if curvature <= 0:
        return torch.zeros_like(gradient)
    return (2.0 * max_kl / curvature).sqrt() * direction


def hessian_product(objective: Objective, parameters: Tensor) -> Product:
    """v -> H v at `parameters`, by differentiating twice. Of the KL at pi = pi_old, H is the Fisher matrix."""
    point = parameters.detach().requires_grad_()
    (slope,) = torch.autograd.grad(objective(point), point, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad((slope * vector).sum(), point, retain_graph=True)[0]

    return product


def trpo_step(
    parameters: Tensor,
    gain_of: Objective,
    kl_of: Objective,
    *,
    max_kl: float,
    damping: float,
    iterations: int,
    shrink: float,
    max_shrinks: int,
) -> TrpoStep:
    """One step from `parameters`, at which `kl_of` must be 0: the longest that raises the surrogate within max_kl.

    The step is multiplied by `shrink` (below 1) until both hold, at most max_shrinks times.
    """
    point = parameters.detach().requires_grad_()
    start = gain_of(point)
    (gradient,) = torch.autograd.grad(start, point)
    fisher = hessian_product(kl_of, parameters)
    step = natural_step(gradient, fisher, max_kl=max_kl, damping=damping, iterations=iterations)
    with torch.no_grad():
        for shrinks in range(max_shrinks):
            moved = parameters + shrink**shrinks * step
            gain, kl = float(gain_of(moved) - start), float(kl_of(moved))
            if gain > 0 and kl <= max_kl:
                return TrpoStep(moved, gain, kl, shrinks)
    return TrpoStep(parameters, 0.0, 0.0, max_shrinks)
