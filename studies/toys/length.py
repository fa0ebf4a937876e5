"""How the aggregate of the loss moves the length of answers whose length does not matter (Dr. GRPO, section 3.1).

An answer is right or wrong with probability 1/2, then goes on with a probability c of its class: its length L is
geometric with mean 1 / (1 - c). The reward ignores length, so the true gradient of both classes' continue logits is 0.
The score of a continue logit is (L - 1)(1 - c) - c, and E[1/L] = -(1 - c) ln(1 - c) / c.

With 1/L per sequence the drift of the wrong answers is upwards and of the right ones downwards; with the tokens of a
batch as denominator what is left falls with the number of sequences; with a constant there is none.

Shapes: P groups, G samples of a group, B = P G sequences, T tokens. Advantages are r - mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posttrain.losses.policy import reinforce
from posttrain.losses.reduce import Aggregate, Denominators
from posttrain.rl.advantages import BASELINES, SCALES, advantages

MAX_TOKENS = 10
"""Constant of the aggregate `constant`: its drift is 0 at any scale."""


def sequence_mean_drift(c: float) -> float:
    """Drift of the wrong class's continue logit under sequence_mean in an infinite group; the right's is minus it.

    p(1 - p) (E[1/L] - (1 - c)) with p = 1/2. In a group of G it is (1 - 1/G) times that.
    """
    return 0.25 * (-(1.0 - c) * math.log1p(-c) / c - (1.0 - c))


def token_mean_drift(c: float, *, group: int, sequences: int) -> float:
    """The same under token_mean over `sequences` sequences of groups of `group`, both classes with the same c.

    The scores of N sequences sum to S (1 - c) - N, with S their tokens, and lengths know nothing of advantages: the
    drift is p(1 - p) (1 - 1/G) (N E[1/S] - (1 - c)).
    """
    return 0.25 * (1.0 - 1.0 / group) * (sequences * mean_inverse_tokens(c, sequences) - (1.0 - c))


def mean_inverse_tokens(c: float, sequences: int) -> float:
    """E[1/S] of the tokens S of N sequences: S - N is negative binomial. The sum stops 12 deviations above its mean."""
    mean, deviation = sequences / (1.0 - c), math.sqrt(sequences * c) / (1.0 - c)
    tokens = torch.arange(sequences, int(mean + 12.0 * deviation) + 200, dtype=torch.float64)
    ways = torch.lgamma(tokens) - math.lgamma(sequences) - torch.lgamma(tokens - sequences + 1)
    chance = (ways + sequences * math.log1p(-c) + (tokens - sequences) * math.log(c)).exp()
    return float((chance / tokens).sum())


def flow(c: float, *, lr: float, steps: int) -> tuple[float, float]:
    """Mean lengths (wrong, right) after gradient ascent with sequence_mean's drift, both classes starting from c."""
    wrong = right = math.log(c / (1.0 - c))
    for _ in range(steps):
        wrong += lr * sequence_mean_drift(_sigmoid(wrong))
        right -= lr * sequence_mean_drift(_sigmoid(right))
    return 1.0 / (1.0 - _sigmoid(wrong)), 1.0 / (1.0 - _sigmoid(right))


def sampled_drift(
    c: float, aggregate: Aggregate, *, group: int, groups: int, per_batch: int, seed: int
) -> tuple[float, float]:
    """(mean, standard error) over batches of the wrong class's drift, from samples, by autograd through the real loss.

    A batch is `per_batch` groups: the sequences that share a token count.
    """
    generator = torch.Generator().manual_seed(seed)
    drifts = []
    for _ in range(groups // per_batch):
        rewards_PG = torch.randint(2, (per_batch, group), generator=generator).double()
        lengths_B = torch.empty(per_batch * group).geometric_(1.0 - c, generator=generator)
        drifts.append(_drift(c, aggregate, rewards_PG, lengths_B))
    drifts_N = torch.tensor(drifts)
    return float(drifts_N.mean()), float(drifts_N.std() / math.sqrt(len(drifts)))


def _drift(c: float, aggregate: Aggregate, rewards_PG: Tensor, lengths_B: Tensor) -> float:
    """Minus the gradient of the batch's loss at the wrong class's continue logit."""
    valid_PG = torch.ones(rewards_PG.shape, dtype=torch.bool)
    advantages_PG = advantages(rewards_PG, valid_PG, baseline=BASELINES["group_mean"], scale=SCALES["none"])
    logit = torch.tensor(math.log(c / (1.0 - c)), dtype=torch.float64, requires_grad=True)
    places_T = torch.arange(int(lengths_B.max()))
    mask_BT = (places_T < lengths_B[:, None]).double()
    logprobs_BT = torch.where(
        places_T < lengths_B[:, None] - 1,
        torch.nn.functional.logsigmoid(logit),
        torch.nn.functional.logsigmoid(-logit),
    )
    wrong_B1 = (rewards_PG.reshape(-1, 1) == 0).double()
    loss_BT = reinforce(logprobs_BT, advantages_PG.reshape(-1, 1) * wrong_B1)
    counts = Denominators(len(lengths_B), int(mask_BT.sum()), MAX_TOKENS)
    aggregate(loss_BT, mask_BT, counts).backward()
    assert logit.grad is not None
    return -float(logit.grad)


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
