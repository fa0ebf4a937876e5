"""Two processes that share the work of a loop do what one does, whatever they share: samples, verdicts, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops.every_loop import LOOPS, run, start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have saved."""
    folder = tmp_path_factory.mktemp("shared")
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    log = folder / "ranks/1.log"
    assert process.returncode == 0, errors[-3000:] + (log.read_text()[-3000:] if log.is_file() else "")
    return folder


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from numbers(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    else:
        yield float(value)


@pytest.mark.parametrize("name", LOOPS)
def test_two_processes_do_what_one_does(shared: Path, tmp_path: Path, name: str) -> None:
    alone = run(name, tmp_path)
    first, second = (torch.load(shared / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["summary"] == second["summary"], "all ranks know the same"
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    # AdamW turns a gradient of rounding errors into a step of its learning rate: weights agree less than losses do.
    for part, tolerance in (("steps", 2e-3), ("summary", 2e-3)):
        assert list(numbers(first[part])) == pytest.approx(list(numbers(alone[part])), rel=tolerance, abs=1e-4), part
    gaps = [float((first["weights"][key] - alone["weights"][key]).abs().max()) for key in alone["weights"]]
    assert max(gaps) < 2e-3
