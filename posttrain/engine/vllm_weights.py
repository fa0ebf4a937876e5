"""The trainer's side of a weight sync: files for the servers, and the comparison of what they hold with the trainer's.

Files, because a server that has to be started anew needs the weights that the others sample from, when the trainer has
long gone on. The comparison is of bytes: small steps change log-probabilities by less than rounding does, so that a
canary alone would let a server pass that keeps the weights of a few steps ago.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engine.policy import Policy, Precision
from posttrain.engine.vllm_plugin import checksum, tokenizer_fingerprint
from posttrain.engine.vllm_server import VLLM_DTYPES
from posttrain.errors import StageError

_SHOWN = 5
"""Names of parameters in a message."""


class SavedWeights:
    """The weights that the servers were told to load last, as safetensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 0
        self._kind: type[PreTrainedModel] | None = None
        self._device = torch.device("cpu")

    def write(self, model: PreTrainedModel, version: int) -> None:
        # Two copies at once may not fit into memory.
        shutil.rmtree(self.folder, ignore_errors=True)
        model.save_pretrained(self.folder)
        self.version, self._kind, self._device = version, type(model), model.device

    def load(self) -> PreTrainedModel:
        """The model as it was written, for as long as a server is compared with it."""
        if self._kind is None:
            raise StageError("no weights were written yet; wanted: load_weights before a server is restarted")
        loaded: Any = self._kind.from_pretrained(self.folder, dtype="auto")
        return loaded.to(self._device).eval()


def check_identity(workers: Sequence[Mapping[str, Any]], policy: Policy, *, precision: Precision, address: str) -> None:
    """Raises StageError when a server serves another kind of model than the policy, naming what differs."""
    config = policy.model.config
    wanted = {
        "architecture": type(policy.model).__name__,
        "vocab_size": config.vocab_size,
        "precision": VLLM_DTYPES[precision],
        "tokenizer": tokenizer_fingerprint(policy.tokenizer),
    }
    longest = getattr(config, "max_position_embeddings", 0)
    for worker in workers:
        for field, value in wanted.items():
            if worker[field] != value:
                raise StageError(f"{address}: {field}: got {worker[field]!r}; wanted: {value!r}, the policy's")
        if worker["longest"] < longest:
            raise StageError(
                f"{address}: longest sequence: got {worker['longest']}; wanted: at least {longest} "
                "(max_position_embeddings of the policy)"
            )


def check_weights(
    loads: Sequence[Mapping[str, Any]],
    workers: Sequence[Mapping[str, Any]],
    model: PreTrainedModel,
    *,
    version: int,
    address: str,
) -> None:
    """Raises StageError unless every worker has `version`, and all together the bytes of `model`'s parameters.

    `loads`, `workers`: the answers of posttrain_load_weights and of posttrain_checksums, one each per worker.
    """
    faults = []
    if missing := sorted({name for load in loads for name in load["missing"]}):
        faults.append(f"it got no weights for {_names(missing)}; wanted: for all")
    if versions := sorted({str(worker["version"]) for worker in workers if worker["version"] != version}):
        faults.append(f"it has version {', '.join(versions)}; wanted: {version}")
    if differing := differences(workers, dict(model.named_parameters())):
        total = sum(1 for _ in model.parameters())
        faults.append(f"{len(differing)} of {total} parameters are not the trainer's: {_names(differing)}")
    if faults:
        raise StageError(f"{address}: weight sync to version {version} failed: {'; '.join(faults)}")


def differences(workers: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]) -> list[str]:
    """Parameters, in their order, of which a worker has other bytes, or some part no worker has.

    The trainer's values are rounded to the server's type first, as loading them does. What the servers have and the
    trainer has not comes last.
    """
    held: dict[str, dict[tuple[int, int, int], set[tuple[str, str]]]] = {}
    for worker in workers:
        for part in worker["held"]:
            span = (part["dim"], part["start"], part["length"])
            held.setdefault(part["name"], {}).setdefault(span, set()).add((part["dtype"], part["checksum"]))
    wrong = [name for name, tensor in parameters.items() if not _agree(held.get(name, {}), tensor.detach())]
    return wrong + sorted(held.keys() - parameters.keys())


def _agree(held: Mapping[tuple[int, int, int], set[tuple[str, str]]], tensor: Tensor) -> bool:
    if len({dim for dim, _, _ in held}) != 1:
        return False
    covered = 0
    for dim, start, length in sorted(held):
        if start != covered or start + length > tensor.shape[dim]:
            return False
        covered = start + length
        part = tensor.narrow(dim, start, length)
        for dtype, its in held[dim, start, length]:
            if checksum(part.to(getattr(torch, dtype))) != its:
                return False
    return covered == tensor.shape[dim]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
