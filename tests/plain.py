"""What packed code is held against: padded rows through a model's ordinary forward pass, and plain softmax.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def pad(sequences: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT (int64; 1 = real token), right-padded to the longest."""
    width = max(len(ids) for ids in sequences)
    ids_BT = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in sequences])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    return ids_BT, mask_BT


def sequence_logprobs(model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor, *, temperature: float) -> Tensor:
    """log p(token t | tokens < t) in nats, shape (B, T); 0 at t = 0 and where `mask_BT` is 0."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float() / temperature
    logprobs_BT = torch.log_softmax(logits_BTV, dim=-1).gather(2, ids_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logprobs_BT * mask_BT[:, 1:], (1, 0))
