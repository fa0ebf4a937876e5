"""Where the time of a step went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds per named part, since it was made; `with clock("generate"): ...` may come several times."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        """Seconds that passed elsewhere, such as in a thread."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def metrics(self, *, tokens: int) -> dict[str, float]:
        """`time/<part>` in seconds, and `tokens` per second of the whole step."""
        total = time.perf_counter() - self._start
        times = {f"time/{part}": seconds for part, seconds in self._seconds.items()}
        return times | {"time/step": total, "perf/tokens_per_second": tokens / total}
