"""Weights from the trainer to a server on the same GPU: handles of CUDA memory go over HTTP, and no weights anywhere.

The server's workers map the trainer's own memory and copy out of it what they keep (CUDA IPC). Nothing passes through
the host, and no second copy of the weights is needed where trainer and server compute in the same type. Both must be
processes of one machine and see the trainer's GPU.

`share` is the trainer's end, `shared_tensors` a worker's.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

Shared = dict[str, Any]
"""A tensor's name, shape and place in the memory of a GPU, as JSON can carry it."""

_FIELDS = tuple(inspect.signature(rebuild_cuda_tensor).parameters)
_BYTES = ("storage_handle", "ref_counter_handle", "event_handle")


def share(tensors: Mapping[str, Tensor]) -> list[Shared]:
    """What a worker needs to map tensors on a GPU; they must stay as they are until all workers have answered."""
    devices = {tensor.device for tensor in tensors.values()}
    if any(device.type != "cuda" for device in devices):
        raise ValueError(f"tensors on {', '.join(sorted(map(str, devices)))}; wanted: on a GPU")
    for device in devices:
        torch.cuda.synchronize(device)
    return [_to_json(name, tensor.detach()) for name, tensor in tensors.items()]


def shared_tensors(shared: Sequence[Shared]) -> Iterator[tuple[str, Tensor]]:
    """The trainer's tensors by name, mapped; raises ValueError where their GPU is not among those seen here."""
    for fields in shared:
        yield fields["name"], _from_json(fields)


def _to_json(name: str, tensor: Tensor) -> Shared:
    _, arguments = reduce_tensor(tensor)
    fields = dict(zip(_FIELDS, arguments, strict=True))
    for known in ("tensor_cls", "storage_cls", "requires_grad"):
        del fields[known]
    fields |= {field: base64.b64encode(fields[field]).decode() for field in _BYTES}
    return fields | {
        "name": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "tensor_size": list(tensor.shape),
        "tensor_stride": list(tensor.stride()),
        "storage_device": _uuid(tensor.device.index),
    }


def _from_json(shared: Shared) -> Tensor:
    fields = {name: value for name, value in shared.items() if name != "name"}
    fields |= {field: base64.b64decode(fields[field]) for field in _BYTES}
    fields |= {
        "tensor_cls": Tensor,
        "storage_cls": torch.storage.TypedStorage,
        "requires_grad": False,
        "dtype": getattr(torch, fields["dtype"]),
        "storage_device": _device(fields["storage_device"]),
    }
    tensor: Tensor = rebuild_cuda_tensor(**fields)
    return tensor


def _device(uuid: str) -> int:
    """A GPU's number here: it differs between processes that do not see the same ones."""
    seen = [_uuid(index) for index in range(torch.cuda.device_count())]
    if uuid not in seen:
        raise ValueError(f"weights on GPU {uuid}; wanted: one that the server sees: {', '.join(seen) or 'none'}")
    return seen.index(uuid)


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
