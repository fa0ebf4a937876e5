"""What the machine can do now: matrix products, and memory traffic. `python -m benchmarks.rates`.

Products in fp32, and in bf16 where the processor has instructions for it: without them one product takes seconds.
Measured in the workers' environment, before and after each case, since a shared machine changes: the best counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from benchmarks.machine import has_bf16
from posttrain.arguments import no_arguments

WIDTH = 2048
BYTES = 2**28
SECONDS = 1.0


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = WIDTH if device.type == "cpu" else 4 * WIDTH
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16() else {})
    rates = {
        name: matrix_rate(dtype, width=width, seconds=SECONDS, device=device) for name, dtype in precisions.items()
    }
    print(json.dumps(rates | {"bytes": memory_rate(BYTES, seconds=SECONDS, device=device)}))


def matrix_rate(dtype: torch.dtype, *, width: int, seconds: float, device: torch.device) -> float:
    """Operations per second of the fastest product of two square matrices."""
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return 2.0 * width**3 / fastest(lambda: torch.mm(a, b), seconds=seconds)


def memory_rate(size: int, *, seconds: float, device: torch.device) -> float:
    """Bytes per second of the fastest copy, read and written ones both counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2.0 * size / fastest(lambda: target.copy_(source), seconds=seconds)


def fastest(work: Callable[[], object], *, seconds: float) -> float:
    """Shortest time of one call, after a first one; calls for about `seconds`, and at least three."""
    times: list[float] = []
    work()
    while sum(times) < seconds or len(times) < 3:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
