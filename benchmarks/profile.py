"""Where the seconds of a piece of work go, by kind of operator; and how much memory is in use."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping

from torch.profiler import ProfilerActivity, profile

KINDS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("scaled_dot_product",),
    "norms": ("layer_norm", "vector_norm", "rsqrt", "rms_norm"),
    "softmax and loss": ("softmax", "nll_loss", "exp", "log"),
    "copies and gathers": ("copy_", "cat", "index", "gather", "scatter", "embedding", "fill_", "clone", "zero_"),
    "optimizer": ("adam", "foreach", "lerp", "addcdiv"),
    "elementwise": (
        "mul", "add", "sub", "div", "silu", "neg", "sum", "mean", "pow", "where", "maximum", "sigmoid", "abs",
    ),
}  # fmt: skip
"""Kind -> parts of operators' names; the first kind that fits counts."""
REST = "other operators"
BETWEEN = "between operators (Python, dispatch)"


def seconds_by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call after a first one, by kind; the profiler's own cost is in them."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        work()
        whole = time.perf_counter() - started
    seconds = dict.fromkeys((*KINDS, REST), 0.0)
    for event in found.key_averages():
        if event.key.startswith("aten::"):
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds | {BETWEEN: max(0.0, whole - sum(seconds.values()))}


def kind_of(operator: str) -> str:
    """Of an operator such as `aten::mm`."""
    name = operator.removeprefix("aten::").strip("_")
    for kind, parts in KINDS.items():
        if name in parts or (kind != "matrix products" and any(part.strip("_") in name for part in parts)):
            return kind
    return REST


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def heap_in_use() -> int:
    """Bytes that this process has allocated and not freed: by glibc's malloc, in blocks of the heap and beside it."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)
