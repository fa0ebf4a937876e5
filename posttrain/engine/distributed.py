"""The processes of a stage, and the work they share.

One process needs no launcher, port or file: the group meets in memory. Several, of posttrain.ranks or a launcher, are
told their ranks in the environment and meet at the first exchange. All of them run the same program: a function here
that exchanges something must be called by all, in the same order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.errors import StageError

Gathered = TypeVar("Gathered")
Item = TypeVar("Item")
Made = TypeVar("Made")

_DEADLINE = timedelta(minutes=30)
"""Longest wait for the other ranks: the slowest rank's rollouts and verification must fit."""


def start_processes() -> None:
    """Join the process group (gloo without CUDA); nothing happens when it is there already."""
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if backend == "nccl":
            torch.cuda.set_device(own_device())
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own meeting place
            dist.init_process_group(backend, timeout=_DEADLINE)
        else:
            own, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=_meet(own, size), rank=own, world_size=size, timeout=_DEADLINE)
    else:
        for name in ("RANK", "LOCAL_RANK"):
            os.environ.setdefault(name, "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_DEADLINE)
    # None of DeepSpeed's own operators. On a CPU it would compile an exchange through shared memory: half a minute, and
    # a compiler needed. To find out which can be built it would import distutils, whose finder holds the lock of all
    # imports, and wait forever for the thread that imports MLflow meanwhile.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def own_device() -> torch.device:
    """Where this process computes: its GPU where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _meet(own: int, size: int) -> dist.Store:
    """The store of the first rank, once all ranks are there.

    A wait inside torch hears no signal, neither a person's nor that of a rank that has died: hence by slices.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=own == 0, timeout=_DEADLINE, wait_for_workers=False)
    store.set(f"here-{own}", "")
    end = time.monotonic() + _DEADLINE.total_seconds()
    for other in range(size):
        while not store.check([f"here-{other}"]):
            if time.monotonic() > end:
                raise StageError(f"rank {other} is not there after {_DEADLINE}; wanted: all {size} ranks")
            time.sleep(0.01)
    return dist.PrefixStore("group", store)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def _several() -> bool:
    """Whether there are other ranks, with whom this one is then in a group."""
    if world_size() == 1:
        return False
    start_processes()
    return True


def all_sum(values: Tensor) -> Tensor:
    """Sum over ranks."""
    if _several():
        dist.all_reduce(values)
    return values


def all_max(values: Tensor) -> Tensor:
    """Largest over ranks."""
    if _several():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_objects(value: Gathered) -> list[Gathered]:
    """`value` of every rank, in their order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first_rank(make: Callable[[], Made]) -> Made:
    """What the first rank makes, on every rank."""
    if not _several():
        return make()
    box: list[Made | None] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return cast(Made, box[0])


def share_out(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Made]]) -> list[Made]:
    """`work(items)`, one result per item, in order and on every rank; each rank works on every n-th item.

    `items` must be the same on all ranks. `work` may get none, and must not exchange anything itself.
    """
    if world_size() == 1:
        return list(work(items))
    made: list[Made | None] = [None] * len(items)
    for first, part in enumerate(gather_objects(list(work(items[rank() :: world_size()])))):
        made[first :: world_size()] = part
    return cast(list[Made], made)


def wait_for_all() -> None:
    if _several():
        dist.barrier()
