"""Log-probabilities of given responses under a given model, and batches over epochs.

Shapes: B responses, T tokens (prompt and response, right-padded).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engine.batching import micro_batches, pad
from posttrain.engine.distributed import share_out
from posttrain.engine.policy import sequence_logprobs

MICRO_BATCH_TOKENS = 16384
"""Padded tokens per forward pass where params.yaml has no such number: memory, and no effect beyond rounding."""

Response = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a response to it."""


def response_length(response: Response) -> int:
    """Tokens of prompt and response."""
    return len(response[0]) + len(response[1])


def response_mask(responses: Sequence[Response]) -> tuple[Tensor, Tensor]:
    """(ids_BT, mask_BT): padded tokens, and True on those of the responses."""
    ids_BT, real_BT = pad([prompt_ids + response_ids for prompt_ids, response_ids in responses])
    starts_B1 = torch.tensor([[len(prompt_ids)] for prompt_ids, _ in responses])
    return ids_BT, real_BT.bool() & (torch.arange(ids_BT.shape[1]) >= starts_B1)


def score(
    model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int, temperature: float
) -> list[Tensor]:
    """Log-probabilities (nats, on the CPU) of each response's tokens under `model`, without gradient."""
    scores: list[Tensor] = [torch.empty(0)] * len(responses)
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        ids_BT, mask_BT = response_mask([responses[i] for i in indices])
        with torch.no_grad():
            logprobs_BT = sequence_logprobs(
                model, ids_BT.to(model.device), mask_BT.to(model.device), temperature=temperature
            ).cpu()
        for row, index in enumerate(indices):
            scores[index] = logprobs_BT[row][mask_BT[row]]
    return scores


def shared_score(
    model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int, temperature: float
) -> list[Tensor]:
    """`score` of responses that all ranks have, each rank its share."""
    return share_out(
        responses, lambda own: score(model, own, micro_batch_tokens=micro_batch_tokens, temperature=temperature)
    )


def epoch_batches(count: int, *, size: int, epochs: float, seed: int) -> list[list[int]]:
    """Index batches of `size` over `epochs` passes, each pass in an order of its own; at least one batch.

    A batch may span two passes; what does not fill the last batch is left out.
    """
    size = min(size, count)
    rng = random.Random(seed)
    steps = max(1, int(epochs * count) // size)
    order: list[int] = []
    while len(order) < steps * size:
        order += rng.sample(range(count), count)
    return [order[start : start + size] for start in range(0, steps * size, size)]
