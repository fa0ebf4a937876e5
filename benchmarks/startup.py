"""What a process costs before it does any work: libraries imported anew, and DVC's look at the chain.

Whole commands, start of Python included, in fresh processes. A stage pays for those that it imports, once; our modules
are imported as in a stage, after package `tasks`, which leaves optional imports out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.side import BenchmarkError, worker_environment

COMMANDS: Mapping[str, Sequence[str]] = {
    "Python alone": ("-c", "pass"),
    "torch": ("-c", "import torch"),
    "a policy: torch, transformers, DeepSpeed": ("-c", "import tasks, posttrain.engine.policy"),
    "a policy and its training": ("-c", "import tasks, posttrain.engine.trainer"),
    "sampling in process": ("-c", "import tasks, posttrain.engine.rollout_transformers"),
    "sampling by vLLM servers, without their start": ("-c", "import tasks, posttrain.engine.rollout_vllm"),
    "MLflow": ("-c", "import mlflow"),
    "Prefect": ("-c", "import prefect"),
    "`dvc status`": ("-m", "dvc", "status", "-q"),
}
REPEATS = 5
STALE = 1
"""Exit status of `dvc status -q` where a stage is not up to date."""


def measure_startup(*, deadline: float, commands: Mapping[str, Sequence[str]] = COMMANDS) -> dict[str, Any]:
    """Median seconds of each command; one run before, which fills the file cache, does not count."""
    return {
        "repeats": REPEATS,
        "seconds": {
            name: median([_run(arguments, deadline=deadline) for _ in range(1 + REPEATS)][1:])
            for name, arguments in commands.items()
        },
    }


def _run(arguments: Sequence[str], *, deadline: float) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=worker_environment(), capture_output=True, text=True, timeout=deadline
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, STALE) or done.stderr.startswith("Traceback"):
        raise BenchmarkError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return seconds
