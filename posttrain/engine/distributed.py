"""The processes of a training stage: those a launcher started, or this one alone.

One process needs no launcher, port or file: the group meets in memory. Several are started by `deepspeed` or
`torchrun`, which tell each its rank in the environment.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

Gathered = TypeVar("Gathered")

_DEADLINE = timedelta(minutes=30)
"""Longest wait for the other ranks: the slowest rank's rollouts and verification must fit."""


def start_processes() -> None:
    """Join the process group (gloo without CUDA); nothing happens when it is there already."""
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, timeout=_DEADLINE)
    else:
        for name in ("RANK", "LOCAL_RANK"):
            os.environ.setdefault(name, "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_DEADLINE)
    # On a CPU DeepSpeed would compile an exchange through shared memory first: half a minute, and a compiler needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def all_sum(values: Tensor) -> Tensor:
    """Sum over ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_max(values: Tensor) -> Tensor:
    """Largest over ranks."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_objects(value: Gathered) -> list[Gathered]:
    """`value` of every rank, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    if world_size() > 1:
        dist.barrier()
