"""Advantages of tokens from a value network: rewards per token, and generalized advantage estimation.

A response is one episode: its reward comes at its last token, and nothing is worth anything after it. Every token of a
response is an action of the policy, so none has to be skipped.

Shape: T response tokens. float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(k1_T: Tensor, score: float, *, coefficient: float) -> Tensor:
    """-coefficient k1 at each token, plus the response's score at the last (arXiv 1909.08593, eq. 2, per token)."""
    rewards_T = -coefficient * k1_T.double()
    rewards_T[-1] += score
    return rewards_T


def gae(rewards_T: Tensor, values_T: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns): A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438).

    Returns are A + V, what the value network is trained towards; they are taken before any whitening.
    """
    values_T = values_T.double()
    next_T = torch.cat([values_T[1:], values_T.new_zeros(1)])
    delta_T = rewards_T.double() + gamma * next_T - values_T
    advantages_T = torch.zeros_like(delta_T)
    following = delta_T.new_zeros(())
    for t in reversed(range(len(delta_T))):
        following = delta_T[t] + gamma * lam * following
        advantages_T[t] = following
    return advantages_T, advantages_T + values_T


def explained_variance(values_T: Tensor, returns_T: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value network, 0 as good as a constant."""
    spread = float(returns_T.var(correction=0))
    return 1.0 - float((returns_T - values_T).var(correction=0)) / spread if spread > 0 else 0.0
