"""Preference losses: one pure function each, of the log-probabilities of whole responses (nats), one value per pair.

`policy` is being trained, `reference` is frozen; chosen and rejected are the two responses of a pair. With
h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected), beta h is the implied reward margin.
A log-probability is the sum over a response's tokens, or, where a name says mean or token, that sum per token. The
two differ by the length, and so must beta: what is right for one is wrong by orders for the other.

Shape: B pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def log_ratio_margin(
    policy_chosen_B: Tensor, policy_rejected_B: Tensor, reference_chosen_B: Tensor, reference_rejected_B: Tensor
) -> Tensor:
    """h: how much more the policy prefers the chosen response than the reference does, in nats."""
    return (policy_chosen_B - reference_chosen_B) - (policy_rejected_B - reference_rejected_B)


def dpo(margin_B: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta h) (arXiv 2305.18290, eq. 7)."""
    return -logsigmoid(beta * margin_B)


def dpo_norm(token_margin_B: Tensor, *, beta: float) -> Tensor:
    """DPO of h per token, so that a long pair weighs no more than a short one (Tulu 3: arXiv 2411.15124).

    Its beta is 10 to 100 times that of DPO; the paper's is 5.
    """
    return dpo(token_margin_B, beta=beta)


def cdpo(margin_B: Tensor, *, beta: float, flip_rate: float) -> Tensor:
    """DPO with soft labels for pairs flipped with probability flip_rate (Mitchell, cDPO note, eq. 3)."""
    return (1.0 - flip_rate) * dpo(margin_B, beta=beta) + flip_rate * dpo(-margin_B, beta=beta)


def robust_dpo(margin_B: Tensor, *, beta: float, flip_rate: float) -> Tensor:
    """Unbiased for DPO's loss on clean labels under symmetric flips, flip_rate < 0.5 (arXiv 2403.00409, eq. 12)."""
    right_B, wrong_B = dpo(margin_B, beta=beta), dpo(-margin_B, beta=beta)
    return ((1.0 - flip_rate) * right_B - flip_rate * wrong_B) / (1.0 - 2.0 * flip_rate)


def ipo(margin_B: Tensor, *, beta: float) -> Tensor:
    """(h - 1/(2 beta))^2 (arXiv 2310.12036, eq. 17; beta is its tau): the margin has a finite goal."""
    return (margin_B - 1.0 / (2.0 * beta)).square()


def ipo_norm(token_margin_B: Tensor, *, beta: float) -> Tensor:
    """IPO of h per token, as TRL has it on the word of the paper's authors: the goal is a margin per token.

    OpenRLHF takes sums: `ipo`. With one beta for both the losses differ by orders.
    """
    return ipo(token_margin_B, beta=beta)


def simpo(chosen_mean_B: Tensor, rejected_mean_B: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (mean log-prob gap) - gamma), without a reference (arXiv 2405.14734, eq. 6)."""
    return -logsigmoid(beta * (chosen_mean_B - rejected_mean_B) - gamma)


def orpo(chosen_mean_B: Tensor, rejected_mean_B: Tensor, *, beta: float) -> Tensor:
    """NLL of the chosen response per token + beta * odds term, without a reference (arXiv 2403.07691, eq. 6)."""
    return -chosen_mean_B + beta * orpo_odds(chosen_mean_B, rejected_mean_B)


def orpo_odds(chosen_mean_B: Tensor, rejected_mean_B: Tensor) -> Tensor:
    """-log sigmoid(log odds ratio) of mean log-probabilities (arXiv 2403.07691, eq. 7)."""
    chosen_B, rejected_B = chosen_mean_B.clamp(max=-1e-6), rejected_mean_B.clamp(max=-1e-6)
    return -logsigmoid((chosen_B - rejected_B) - (_log1mexp(chosen_B) - _log1mexp(rejected_B)))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0; the branch point keeps both forms accurate, and their gradients finite."""
    small_B = x < -math.log(2.0)
    far = torch.log1p(-torch.where(small_B, x, torch.full_like(x, -1.0)).exp())
    near = torch.log(-torch.expm1(torch.where(small_B, torch.full_like(x, -0.5), x)))
    return torch.where(small_B, far, near)


def kto_baseline(mismatched_log_ratio_B: Tensor) -> Tensor:
    """z0: the mean log-ratio of mismatched prompt-response pairs, at least 0, without gradient (arXiv 2402.01306)."""
    return mismatched_log_ratio_B.detach().mean().clamp(min=0.0)


def kto(
    log_ratio_B: Tensor,
    desirable_B: Tensor,
    baseline: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """weight (1 - sigmoid(+-beta (log-ratio - z0))) of unpaired responses (arXiv 2402.01306, eq. 8)."""
    sign_B = torch.where(desirable_B, 1.0, -1.0)
    weight_B = torch.where(desirable_B, desirable_weight, undesirable_weight)
    return weight_B * (1.0 - torch.sigmoid(beta * sign_B * (log_ratio_B - baseline)))


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor, *, centering: float) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) + centering (r_chosen + r_rejected)^2 of reward-model scores.

    The margin asks more of pairs whose difference is plain (Llama 2, arXiv 2307.09288, eq. 2); 0 is plain
    Bradley-Terry. Only differences are identified; centering (arXiv 2312.09244, eq. 2) fixes the level.
    """
    return -logsigmoid(chosen_B - rejected_B - margin_B) + centering * (chosen_B + rejected_B).square()
