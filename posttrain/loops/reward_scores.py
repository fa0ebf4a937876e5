"""What a reward model says of responses: its score at the last token of each, prompt included.

Shapes: B responses, M tokens, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.engine.attention import packed_hidden
from posttrain.engine.packing import Packed, Response
from posttrain.loops.scoring import per_response


def head_at(model: nn.Module, packed: Packed, places_M: Tensor) -> Tensor:
    """What the scalar head reads at these places of the packed tokens: (M,) in fp32."""
    body, head = model.get_submodule(str(model.base_model_prefix)), model.get_submodule("score")
    values_M: Tensor = head(packed_hidden(body, packed)[places_M]).float()[:, 0]
    return values_M


def scores(model: nn.Module, packed: Packed) -> Tensor:
    """Rewards (B,) in fp32, read at the last token of each response."""
    return head_at(model, packed, packed.last_B)


def score_responses(model: PreTrainedModel, responses: Sequence[Response], *, micro_batch_tokens: int) -> list[float]:
    """Rewards in the order of `responses`, without gradient."""
    return per_response(
        responses,
        lambda packed: scores(model, packed).tolist(),
        micro_batch_tokens=micro_batch_tokens,
        device=model.device,
    )
