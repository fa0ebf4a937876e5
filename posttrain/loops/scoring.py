"""Log-probabilities of given responses under a given model, and batches over epochs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engine.distributed import share_out
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import predicted_logprobs

Result = TypeVar("Result")


def response_length(response: Response) -> int:
    """Tokens of prompt and response."""
    return len(response[0]) + len(response[1])


def score(
    model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int, temperature: float
) -> list[Tensor]:
    """Log-probabilities (nats, on the CPU) of each response's tokens under `model`, without gradient."""

    def read(packed: Packed) -> Sequence[Tensor]:
        return packed.split(predicted_logprobs(model, packed, temperature=temperature).cpu())

    return per_response(responses, read, micro_batch_tokens=micro_batch_tokens, device=model.device)


def per_response(
    responses: Sequence[Response],
    read: Callable[[Packed], Sequence[Result]],
    *,
    micro_batch_tokens: int,
    device: torch.device,
) -> list[Result]:
    """What `read` finds for each response, in their order; micro-batch by micro-batch, without gradient."""
    found: dict[int, Result] = {}
    for indices in plan([[response] for response in responses], tokens=micro_batch_tokens):
        with torch.no_grad():
            results = read(pack([responses[i] for i in indices]).to(device))
        found |= zip(indices, results, strict=True)
    return [found[i] for i in range(len(responses))]


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
