"""For all tests: this process counts as set up (no re-exec), nothing is tracked, no hub is asked, cores are shared."""

from __future__ import annotations

import os
import signal

import pytest

os.environ.update(
    POSTTRAIN_ENVIRONMENT="1",
    POSTTRAIN_TRACKING="off",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DVC_NO_ANALYTICS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in the background deaf to Ctrl-C, which tests send to the processes that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that the other process has something to do until its end."""
    items.sort(key=lambda item: "/smoke/" not in str(item.path))
