"""Proof that a sampler uses the trainer's weights: both score the same tokens, and must agree.

The sampler continues fixed prompts greedily through its ordinary path (prefill, cache, decoding), and the trainer's
model scores what came out. Stale, partly loaded or wrongly converted weights show as a difference in log-probability;
a sampler that reports success and keeps the old weights (stock vLLM on a CPU does) cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.packing import pack
from posttrain.engine.policy import predicted_logprobs
from posttrain.engine.rollout import Request
from posttrain.errors import StageError
from posttrain.records import Rollout

_GREEDY = config.Generation(temperature=0.0, max_new_tokens=6)
_PROMPT_LENGTHS = (3, 9, 17)


Sample = Callable[..., list[Rollout]]
"""`generate` of an engine, or of one server of it alone."""


def canary_requests(vocab_size: int) -> list[Request]:
    """Fixed prompts of unequal lengths, spread over the vocabulary."""
    return [
        Request(f"canary-{length}", tuple((7919 * (length + i) + 31 * i * i) % vocab_size for i in range(length)))
        for length in _PROMPT_LENGTHS
    ]


def largest_difference(rollouts: Sequence[Rollout], model: PreTrainedModel, *, temperature: float = 1.0) -> float:
    """Largest |sampler - trainer| log-probability (nats) over all sampled tokens."""
    packed = pack([(rollout.prompt_ids, rollout.response_ids) for rollout in rollouts])
    sampled_M = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
    with torch.no_grad():
        trained_M = predicted_logprobs(model, packed.to(model.device), temperature=temperature).cpu()
    return float((sampled_M - trained_M).abs().max())


def check_canary(sample: Sample, model: PreTrainedModel, *, version: int, tolerance: float) -> float:
    """The largest difference in nats; raises StageError above `tolerance`, naming the `version` of the weights."""
    # No token ends a canary: one of a single token would prove little.
    requests = canary_requests(model.config.vocab_size)
    rollouts = sample(requests, samples=1, generation=_GREEDY, seed=0, stop_ids=())
    difference = largest_difference(rollouts, model)
    if not difference <= tolerance:
        raise StageError(
            f"weight sync to version {version} failed: sampler and trainer differ by {difference:.3g} nats, "
            f"wanted: at most {tolerance:g} (engine.canary_tolerance); "
            "the sampler does not compute with the trainer's weights"
        )
    return difference
