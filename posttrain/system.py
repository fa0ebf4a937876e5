"""What this machine is and how its processes are set up; nothing here changes a result.

`system.yaml` (optional, untracked) says what differs between machines: threads, processes, addresses. It is not a
DVC dependency, so that moving to another machine retrains nothing. `apply_environment` is the only place that sets
allocator, thread and offline variables. Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from posttrain.config import ConfigError
from posttrain.machine import cuda_device, usable_cores

MARK = "POSTTRAIN_ENVIRONMENT"
"""Set to 1 in every process whose environment is complete."""

LARGE_PAGES = "GLIBC_TUNABLES"

ALLOCATOR = {
    # glibc hands large blocks back to the kernel at each free, and page faults then dominate training on CPU: keeping
    # them made the same fp32 steps 2x to 6x faster. Read once, when a process starts; hence the re-exec below.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    # And what it keeps in pages of 2 MiB where the kernel gives them to who asks: a page fault for 512 of the usual.
    LARGE_PAGES: "glibc.malloc.hugetlb=1",
}

SPIN = "GOMP_SPINCOUNT"
"""Of OpenMP threads out of work: turns of a loop in which they wait for more before they sleep."""


class System(BaseModel):
    """`system.yaml`; every field has a default that suits a single machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threads: int | None = Field(default=None, ge=1)
    """Threads of one process; None: all cores this process may use, divided among the processes of a stage."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that share a stage's work; None: two on a CPU, however many cores it has, one with a GPU."""
    tracking_uri: str | None = None
    """MLflow store; None: a sqlite file in the project folder."""
    vllm_servers: list[str] = Field(default_factory=list)
    """Addresses of vLLM servers that already run; empty: one is started for the stage."""
    vllm_weights: Literal["file", "broadcast", "ipc"] = "file"
    """How servers get weights: files that they see too; a broadcast (NCCL between GPUs), which needs no such; or out of
    the trainer's own memory, on the GPU that they share with it (CUDA IPC)."""
    vllm_sleep: bool = False
    """Whether servers give their GPU memory back while the trainer takes a step, so that both can use one GPU."""
    vllm_memory: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that a server takes; None: vLLM's own, for a GPU that it has to itself."""
    hostfile: str | None = None
    """File with lines `host slots=N`: so many processes of a stage on each machine, in the place of `processes`."""
    offline: bool | None = None
    """Whether model and data hubs are out of bounds; None: as the environment has it."""

    @model_validator(mode="after")
    def choices_agree(self) -> System:
        if self.hostfile is not None and self.processes is not None:
            raise ValueError(f"no `processes` beside `hostfile` (got {self.processes}): its slots say how many")
        return self


def load_system(path: Path = Path("system.yaml")) -> System:
    """The machine's settings; without the file, the defaults."""
    if not path.is_file():
        return System()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return System.model_validate(data)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc']))}: got {e['input']!r}; wanted: {e['msg']}" for e in error.errors()
        )
        raise ConfigError("\n".join(lines)) from error


def processes_of(system: System) -> int:
    """Processes of a stage on this machine. Sums depend on it by rounding, hence no count of cores on a CPU."""
    return system.processes or (1 if cuda_device() else 2)


def threads_per_process(system: System, processes: int) -> int:
    """Threads of each of `processes` that share a stage's work."""
    return system.threads or max(1, usable_cores() // processes)


def environment(system: System) -> dict[str, str]:
    """Every variable that the project's own processes want; one that a person has set stays as it is."""
    wanted = {
        **ALLOCATOR,
        "OMP_NUM_THREADS": str(system.threads or usable_cores()),
        # A thread out of work waits some ten microseconds for more before it sleeps: waking one takes as long as many a
        # small operation. No longer, since processes that spin on the same cores slow each other several times.
        "OMP_WAIT_POLICY": "PASSIVE",
        SPIN: "4000",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    if system.offline:
        wanted |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if not cuda_device():
        wanted["DS_ACCELERATOR"] = "cpu"
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def apply_environment(system: System) -> None:
    """Make this process one with the environment above: sets it and, once, starts the same command again in it.

    The allocator reads its variables at process start and OpenMP at library load, so assigning os.environ is too late.
    """
    if os.environ.get(MARK) == "1":
        return
    os.environ.update(environment(system), **{MARK: "1"})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(os.environ))
