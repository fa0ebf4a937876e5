"""What a set of samples per question says: unbiased pass@k and majority vote.

avg@k is the mean of the correct flags, which is pass@1. The plug-in 1 - (1 - c/n)^k is biased low and not offered.

Sources: Chen et al., arXiv 2107.03374, eq. 1 (pass@k); Wang et al., arXiv 2203.11171 (self-consistency).
Shapes: Q questions, K samples of a question.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def pass_at_k(samples_Q: npt.ArrayLike, correct_Q: npt.ArrayLike, *, k: int) -> Floats:
    """Probability per question that at least one of `k` samples drawn without replacement is right, [Q].

    1 - C(n-c, k) / C(n, k) as the product 1 - prod_{i=n-c+1..n} (1 - k/i), which neither overflows nor cancels.
    Raises ValueError where a question has fewer than `k` samples: there is no unbiased estimate then.
    """
    samples = np.atleast_1d(np.asarray(samples_Q, dtype=np.int64))
    correct = np.atleast_1d(np.asarray(correct_Q, dtype=np.int64))
    if k < 1 or (samples < k).any():
        raise ValueError(f"pass@k: got k={k} with {samples.min(initial=k)} samples, wanted 1 <= k <= samples")
    if ((correct < 0) | (correct > samples)).any():
        raise ValueError("pass@k: got a question with more right answers than samples, wanted 0 <= correct <= samples")
    values = np.empty(samples.shape, dtype=np.float64)
    for n, c in set(zip(samples.tolist(), correct.tolist(), strict=True)):
        here = (samples == n) & (correct == c)
        factors = 1.0 - k / np.arange(n - c + 1, n + 1, dtype=np.float64)
        values[here] = 1.0 if n - c < k else 1.0 - float(np.prod(factors))
    return values


def majority_vote(answers_K: Sequence[str | None], *, seed: int, question_id: str) -> str | None:
    """The most frequent answer; None where no sample has an answer (no answer is not a vote).

    Ties are broken at random, seeded by question, so that neither sample order nor spelling wins them.
    """
    votes = Counter(answer for answer in answers_K if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    tied = sorted(answer for answer, count in votes.items() if count == most)
    return tied[0] if len(tied) == 1 else random.Random(f"{seed}:{question_id}").choice(tied)
