"""Weights from the trainer to a server's workers over a process group: NCCL between GPUs, gloo where there are none.

The other way is files that both see (posttrain.engine.vllm_weights). This one needs no common memory or file system,
and between GPUs nothing passes through the host. One group per server, the trainer being its rank 0: servers load side
by side, and one that dies takes no other with it. NCCL knows no two ranks on one GPU: a trainer and a server that share
one use files.

`Channel` is the trainer's end, `Receiver` a worker's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, TCPStore

from posttrain.errors import StageError
from posttrain.machine import own_address

Backend = Literal["gloo", "nccl"]
Announced = tuple[str, str, list[int]]
"""Name, type and shape of a tensor that comes."""

SECONDS = timedelta(seconds=60)
"""Deadline for all to join, and for one tensor."""


class Channel:
    """The trainer's end, to the workers of one server."""

    def __init__(self, call: Callable[..., Any], *, address: str, workers: int, device: torch.device) -> None:
        """`call(method, *arguments)`: what runs a method on every worker and returns when all are done.

        Raises StageError when the workers do not join.
        """
        self._call = call
        backend: Backend = "nccl" if device.type == "cuda" else "gloo"
        own = own_address(urlsplit(address).hostname or address)
        with contextlib.closing(socket.create_server((own, 0))) as listening:
            port = listening.getsockname()[1]
            # torch would listen on every interface.
            store = TCPStore(
                own, port, None, True, SECONDS, wait_for_workers=False, master_listen_fd=listening.detach()
            )

        def join() -> None:
            self._group = _join(store, 0, workers + 1, own, backend)

        _at_once(lambda: call("posttrain_join", own, port, workers + 1, backend), join)

    def send(self, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, version: int) -> Any:
        """The workers' answers to tensors sent as `dtype`; raises StageError when one does not take what is sent."""
        announced = [(name, str(dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]

        def broadcast() -> None:
            for tensor in tensors.values():
                self._group.broadcast(tensor.detach().to(dtype).contiguous(), 0).wait()

        return _at_once(lambda: self._call("posttrain_receive_weights", announced, version), broadcast)


class Receiver:
    """A worker's end; `rank` counts the workers of its server from 0."""

    def __init__(self, host: str, port: int, *, rank: int, size: int, backend: Backend, device: torch.device) -> None:
        store = TCPStore(host, port, None, False, SECONDS, wait_for_workers=False)
        self._device = device if backend == "nccl" else torch.device("cpu")
        self._group = _join(store, rank + 1, size, own_address(host), backend)

    def tensors(self, announced: Sequence[Announced]) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in announced:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
            self._group.broadcast(tensor, 0).wait()
            yield name, tensor


def _join(store: TCPStore, rank: int, size: int, own: str, backend: Backend) -> ProcessGroup:
    groups: Any = torch.distributed  # whose stubs know neither kind's options
    if backend == "nccl":
        options = groups.ProcessGroupNCCL.Options()
        kind = groups.ProcessGroupNCCL
    else:
        options = groups.ProcessGroupGloo._Options()
        # By itself it takes the interface of the machine's own name, which is often not the one on the way.
        options._devices = [groups.ProcessGroupGloo.create_device(hostname=own)]
        kind = groups.ProcessGroupGloo
    options._timeout = SECONDS
    joined: ProcessGroup = kind(store, rank, size, options)
    return joined


def _at_once(ask: Callable[[], Any], act: Callable[[], None]) -> Any:
    """What the server answers, while this process does its part; the server's own error before what it causes here."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            act()
        except RuntimeError as error:  # torch's, for a peer that is gone, or late
            asked.result()
            raise StageError(f"weights by broadcast: {error}") from error
        return asked.result()
