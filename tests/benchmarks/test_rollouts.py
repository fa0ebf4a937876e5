"""The table of both engines, and the memory of a tree of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.rollouts import PAGE, block, peak_of_tree, read_all
from posttrain.evals.readme import block_of


def result(speed: float) -> dict[str, float]:
    return {
        "tokens_per_second": speed,
        "slowest": speed - 10,
        "fastest": speed + 10,
        "start_seconds": 12.34,
        "sync_seconds": 0.056,
        "peak_bytes": 3 * 2**20,
    }


def test_a_row_for_each_engine_with_its_conditions(tmp_path) -> None:
    size = {"prompts": 4, "group": 2, "prompt_tokens": 16, "response_tokens": 8}
    values = {
        "model": "micro",
        "precision": "fp32",
        "size": size,
        "machine": "a machine",
        "engines": {"transformers": result(1000.0), "vllm": result(2000.0)},
    }
    (tmp_path / "cpu-micro.json").write_text(json.dumps(values), encoding="utf-8")
    text = block(read_all(tmp_path))
    assert "| micro | transformers | fp32 | 1,000 [990, 1,010] | 12.3 | 0.06 | 3 |" in text
    assert "| micro | vllm | fp32 | 2,000 [1,990, 2,010] | 12.3 | 0.06 | 3 |" in text
    assert "4 prompts of 16 tokens, 2 samples each of 8 tokens, on a machine." in text
    assert block({}).startswith("Not run yet")


def test_the_page_shows_what_is_kept() -> None:
    assert block_of(PAGE.read_text(encoding="utf-8")) == block(read_all())


def test_memory_counts_children_of_children() -> None:
    grab = "x = bytearray(64 * 2**20); print('ready', flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grab!r}])"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert peak_of_tree(child.pid) > 64 * 2**20
        assert peak_of_tree() > peak_of_tree(child.pid)
        assert peak_of_tree(os.getpid()) >= peak_of_tree(child.pid)
    finally:
        child.communicate(b"\n", timeout=30)
