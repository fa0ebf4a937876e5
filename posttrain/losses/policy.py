"""Policy-gradient losses, composed from axes: ratio, clip, surrogate and the correction for a sampler that differs.

Every function is per token and pure; posttrain.losses.reduce turns its result into a number. `policy` are the
log-probabilities being trained, `old` those of the policy at the start of the update, `sampled` those the sampler
reported; all in nats, fp32, at the sampling temperature.

Shapes: B sequences, T tokens; mask_BT is 1 on trained tokens. advantages_BT is constant over t for outcome rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Numeric guard before exp, not a clip of the objective: e^20 is far outside any clip range."""


# Ratio: log of what the policy's probability became, relative to the old policy.


def token_ratio(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log(pi / pi_old) of each token (PPO, arXiv 1707.06347)."""
    return (policy_BT - old_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_ratio(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean log-ratio of the sequence, at each of its tokens (GSPO, arXiv 2507.18071, eq. 7)."""
    lengths_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    mean_B1 = ((policy_BT - old_BT) * mask_BT).sum(1, keepdim=True) / lengths_B1
    return mean_B1.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).expand_as(policy_BT)


def no_ratio(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log-ratio 0: the samples count as on-policy. Its gradient is that of log pi, so that `-A rho` is REINFORCE."""
    return policy_BT - policy_BT.detach()


RATIOS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token_ratio,
    "sequence": sequence_ratio,
    "none": no_ratio,
}


# Clip: loss of a token, given its ratio; and which tokens have lost their gradient by it.


def no_clip(
    log_ratio_BT: Tensor, policy_BT: Tensor, advantages_BT: Tensor, *, low: float, high: float, dual: float
) -> tuple[Tensor, Tensor]:
    """-A rho."""
    return -advantages_BT * log_ratio_BT.exp(), torch.zeros_like(advantages_BT)


def ppo_clip(
    log_ratio_BT: Tensor, policy_BT: Tensor, advantages_BT: Tensor, *, low: float, high: float, dual: float
) -> tuple[Tensor, Tensor]:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) (PPO, eq. 7; low < high: DAPO's clip-higher)."""
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantages_BT * ratio_BT
    bounded_BT = -advantages_BT * ratio_BT.clamp(1.0 - low, 1.0 + high)
    return torch.maximum(free_BT, bounded_BT), (bounded_BT > free_BT).to(free_BT.dtype)


def dual_clip(
    log_ratio_BT: Tensor, policy_BT: Tensor, advantages_BT: Tensor, *, low: float, high: float, dual: float
) -> tuple[Tensor, Tensor]:
    """PPO's clip, and for A < 0 at most -dual A, because rho has no upper bound there (arXiv 1912.09729, eq. 5)."""
    loss_BT, clipped_BT = ppo_clip(log_ratio_BT, policy_BT, advantages_BT, low=low, high=high, dual=dual)
    limit_BT = -dual * advantages_BT
    beyond_BT = (advantages_BT < 0) & (loss_BT > limit_BT)
    return torch.where(beyond_BT, limit_BT, loss_BT), torch.maximum(clipped_BT, beyond_BT.to(loss_BT.dtype))


def cispo_clip(
    log_ratio_BT: Tensor, policy_BT: Tensor, advantages_BT: Tensor, *, low: float, high: float, dual: float
) -> tuple[Tensor, Tensor]:
    """-sg(min(rho, 1 + high)) A log pi: the weight is clipped, no token loses its gradient (CISPO).

    arXiv 2506.13585, eq. 4. There is no lower bound, as in the paper's runs. The second result counts bounded weights.
    """
    ratio_BT = log_ratio_BT.detach().exp()
    return -ratio_BT.clamp(max=1.0 + high) * advantages_BT * policy_BT, (ratio_BT > 1.0 + high).to(policy_BT.dtype)


Clip = Callable[..., tuple[Tensor, Tensor]]

CLIPS: Mapping[str, Clip] = {"none": no_clip, "ppo": ppo_clip, "dual": dual_clip, "cispo": cispo_clip}


# Surrogate: what is minimised. Only `clipped` looks at ratio and clip.


def reinforce(policy_BT: Tensor, advantages_BT: Tensor) -> Tensor:
    """-A log pi (Williams, 1992)."""
    return -advantages_BT * policy_BT


def positives_only(policy_BT: Tensor, advantages_BT: Tensor) -> Tensor:
    """-max(A, 0) log pi: online rejection-sampling fine-tuning; bad samples are ignored (arXiv 2402.03300, eq. 17)."""
    return -advantages_BT.clamp(min=0.0) * policy_BT


def squared_log_ratio(
    policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, *, tau: float
) -> Tensor:
    """-A log pi(y) + (tau/2) (log pi(y)/pi_old(y))^2 for whole sequences (Kimi k1.5, arXiv 2501.12599, eq. 3).

    The square belongs to the sequence, not to a token; it is spread evenly over the sequence's tokens, so that
    summing over tokens (aggregate `sequence_sum`) gives the paper's loss.
    """
    lengths_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    drift_B1 = ((policy_BT - old_BT) * mask_BT).sum(1, keepdim=True)
    return -advantages_BT * policy_BT + 0.5 * tau * drift_B1.square() / lengths_B1


# Correction: weights for tokens whose sampler (another engine, other numerics) disagreed with the trainer.


def no_correction(old_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """Weight 1."""
    return torch.ones_like(old_BT)


def truncated(old_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap): truncated importance sampling (TIS)."""
    return _sampler_ratio(old_BT, sampled_BT).clamp(max=cap)


def masked(old_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """The ratio within [1/cap, cap], else 0 (IcePop)."""
    ratio_BT = _sampler_ratio(old_BT, sampled_BT)
    return ratio_BT * ((ratio_BT >= 1.0 / cap) & (ratio_BT <= cap))


def sequence_mask(old_BT: Tensor, sampled_BT: Tensor, mask_BT: Tensor, *, cap: float) -> Tensor:
    """The ratio of the whole sequence, 0 where it exceeds cap."""
    total_B1 = ((old_BT - sampled_BT).detach() * mask_BT).sum(1, keepdim=True)
    ratio_B1 = total_B1.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return (ratio_B1 * (ratio_B1 <= cap)).expand_as(old_BT)


def _sampler_ratio(old_BT: Tensor, sampled_BT: Tensor) -> Tensor:
    return (old_BT - sampled_BT).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


Correction = Callable[..., Tensor]

CORRECTIONS: Mapping[str, Correction] = {
    "none": no_correction,
    "truncated": truncated,
    "masked": masked,
    "sequence_mask": sequence_mask,
}
