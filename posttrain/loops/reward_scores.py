"""What a reward model says of responses: its score at the last token of each, prompt included.

Shapes: B responses, T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.engine.batching import micro_batches, pad
from posttrain.loops.scoring import Response, response_length


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    ids_BT: Tensor
    last_B: Tensor
    """Position of each row's last real token."""


def make_score_batch(responses: Sequence[Response], device: torch.device) -> ScoreBatch:
    """Tensors of a micro-batch, a row per response."""
    ids_BT, mask_BT = pad([prompt + response for prompt, response in responses])
    return ScoreBatch(ids_BT.to(device), (mask_BT.sum(1) - 1).to(device))


def scores(model: nn.Module, batch: ScoreBatch) -> Tensor:
    """Rewards (B,) in fp32, read at the last token of each response."""
    body, head = model.get_submodule(str(model.base_model_prefix)), model.get_submodule("score")
    hidden_BTC = body(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    rows_B = torch.arange(len(batch.last_B), device=batch.last_B.device)
    rewards_B: Tensor = head(hidden_BTC[rows_B, batch.last_B]).float()[:, 0]
    return rewards_B


def score_responses(model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int) -> list[float]:
    """Rewards in the order of `responses`, without gradient."""
    rewards = [0.0] * len(responses)
    for indices in micro_batches([response_length(response) for response in responses], tokens=micro_batch_tokens):
        batch = make_score_batch([responses[i] for i in indices], model.device)
        with torch.no_grad():
            rewards_B = scores(model, batch)
        for index, reward in zip(indices, rewards_B.tolist(), strict=True):
            rewards[index] = reward
    return rewards
