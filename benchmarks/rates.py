"""What the machine can do now: matrix products in fp32 and in bf16, and memory traffic. `python -m benchmarks.rates`.

Measured in the workers' environment, before and after each case, since a shared machine changes: the best counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

WIDTH = 2048
BYTES = 2**28
SECONDS = 1.0


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = WIDTH if device.type == "cpu" else 4 * WIDTH
    print(
        json.dumps(
            {
                "fp32": matrix_rate(torch.float32, width=width, seconds=SECONDS, device=device),
                "bf16": matrix_rate(torch.bfloat16, width=width, seconds=SECONDS, device=device),
                "bytes": memory_rate(BYTES, seconds=SECONDS, device=device),
            }
        )
    )


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
    main()
