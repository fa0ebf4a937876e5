"""The machine a figure belongs to. Imports no torch."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posttrain.machine import cuda_device, gpu_names, memory_bytes, usable_cores
from posttrain.system import System, environment

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86 and of Arm."""
PACKAGES = ("torch", "transformers", "deepspeed", "trl", "accelerate")


def describe() -> dict[str, Any]:
    """Name, threads of each side, what it multiplies in, and the versions of what was measured."""
    kind = "cuda" if cuda_device() else "cpu-bf16" if has_bf16() else "cpu"
    name = gpu_names()[0] if kind == "cuda" else cpu_name(Path("/proc/cpuinfo"))
    return {
        "kind": kind,
        "name": name + (", with bf16 products" if kind == "cpu-bf16" else ""),
        "threads": int(environment(System())["OMP_NUM_THREADS"]),
        "bf16": has_bf16(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def has_bf16() -> bool:
    """Whether this machine multiplies in it."""
    return cuda_device() or multiplies_bf16(Path("/proc/cpuinfo"))


def cpu_name(cpuinfo: Path) -> str:
    """Model, cores of this process, memory."""
    names = _fields(cpuinfo, "model name")
    memory = round(memory_bytes() / 2**30)
    return f"{names[0] if names else platform.machine()}, {usable_cores()} cores, {memory} GiB"


def multiplies_bf16(cpuinfo: Path) -> bool:
    """Whether the processor has instructions for it: without them bf16 is several times slower than fp32."""
    flags = {flag for line in _fields(cpuinfo, "flags") + _fields(cpuinfo, "Features") for flag in line.split()}
    return bool(flags & _BF16_FLAGS)


def _fields(cpuinfo: Path, name: str) -> list[str]:
    if not cpuinfo.is_file():
        return []
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    return [value.strip() for key, _, value in lines if key.strip() == name]
