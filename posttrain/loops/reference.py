"""Log-probabilities under the reference policy, computed once and kept in a file.

An interrupted run reads them back. The file names what they were computed from, by hash: the reference's weights and
the token ids. One that is damaged, or is of other weights or ids, is said to be so and made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.engine.distributed import from_first_rank, rank
from posttrain.engine.packing import Response
from posttrain.files import write_atomic
from posttrain.loops.scoring import shared_score

Sums = dict[str, list[float]]
"""Name -> log-probability of each response (nats, summed over its tokens)."""


def reference_sums(
    reference: PreTrainedModel,
    responses: Mapping[str, Sequence[Response]],
    *,
    file: Path,
    micro_batch_tokens: int,
    note: Callable[[str], None],
) -> Sums:
    """Those of `responses` under `reference`: from `file`, or computed and written there; all of them on every rank."""
    reference.eval()
    key = _digest([_weights_digest(reference), dict(responses)])
    kept = from_first_rank(lambda: _read(file, key, note))
    if kept is not None:
        return kept
    sums = {
        name: [
            float(x.sum())
            for x in shared_score(reference, some, micro_batch_tokens=micro_batch_tokens, temperature=1.0)
        ]
        for name, some in responses.items()
    }
    if rank() == 0:
        write_atomic(file, json.dumps({"key": key, "sums": sums, "sha256": _digest([key, sums])}) + "\n")
    return sums


def _read(file: Path, key: str, note: Callable[[str], None]) -> Sums | None:
    """What the file holds, if it is whole and of this key."""
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        whole = stored["sha256"] == _digest([stored["key"], stored["sums"]])
    except (ValueError, KeyError, TypeError):
        whole = False
    if whole and stored["key"] == key:
        sums: Sums = stored["sums"]
        return sums
    fault = "of other weights or token ids" if whole else "damaged"
    note(f"{file}: {fault}; the log-probabilities under the reference are computed again")
    return None


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
