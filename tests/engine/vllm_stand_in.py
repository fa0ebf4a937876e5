"""What speaks vLLM's HTTP over a model of its own, in this process, and misbehaves as told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from posttrain.config import Generation
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.engine.vllm_broadcast import Receiver
from posttrain.engine.vllm_plugin import checksum, tokenizer_fingerprint
from tests.engine.conftest import micro_model, micro_tokenizer


class Gone(Exception):
    """The connection ends without an answer."""


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    """As many as an engine may send at once, or the kernel would refuse some."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class StandIn:
    """The routes of vLLM that are used."""

    def __init__(self) -> None:
        self.model = micro_model(seed=7)
        self.version: int | None = None
        self.identity: dict[str, Any] = {
            "architecture": "Qwen3ForCausalLM", "vocab_size": 64, "longest": 128, "precision": "float32",
            "tokenizer": tokenizer_fingerprint(micro_tokenizer()),
        }  # fmt: skip
        self.asked: list[dict[str, Any]] = []
        """Bodies of the completions, in order of arrival."""
        self.unproven = 0
        """How many completions were asked before it had weights."""
        self.calls: list[str] = []
        """Paths, and methods of the workers, in order of arrival."""
        self.resets = 0
        self.busy = 0
        self.missing: list[str] = []
        self.keeps: Callable[[str], bool] = lambda name: False
        """Which parameters a load that reports success leaves as they are."""
        self.notes_version = True
        self.says_trainers_checksums = False
        """True: whatever it holds, its checksums are those of what it was sent."""
        self.before: Callable[[str], None] = lambda call: None
        """Called with each entry of `calls`; may raise Gone, or wait."""
        self._file: dict[str, torch.Tensor] = {}
        self._receiver: Receiver | None = None
        self._one_at_a_time = threading.Lock()
        self._server = Listener(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def posttrain_identity(self) -> dict[str, Any]:
        return self.identity

    def posttrain_load_weights(self, folder: str, version: int) -> dict[str, Any]:
        return self._load(load_file(Path(folder) / "model.safetensors"), version)

    def posttrain_join(self, host: str, port: int, size: int, backend: Any) -> None:
        device = torch.device("cpu")
        self._receiver = Receiver(host, port, rank=0, size=size, backend=backend, device=device)

    def posttrain_receive_weights(self, announced: list[Any], version: int) -> dict[str, Any]:
        assert self._receiver is not None
        return self._load(dict(self._receiver.tensors(announced)), version)

    def _load(self, file: dict[str, torch.Tensor], version: int) -> dict[str, Any]:
        self._file = file
        new = {name: values for name, values in self._file.items() if not self.keeps(name)}
        self.model.load_state_dict(new, strict=False)
        if self.notes_version:
            self.version = version
        return {"missing": self.missing}

    def posttrain_weights_version(self) -> dict[str, Any]:
        return {"version": self.version}

    def posttrain_checksums(self) -> dict[str, Any]:
        held = dict(self.model.named_parameters())
        if self.says_trainers_checksums:
            held |= self._file
        return {
            "version": self.version,
            "held": [
                {
                    "name": name, "dim": 0, "start": 0, "length": values.shape[0], "dtype": "float32",
                    "checksum": checksum(values),
                }
                for name, values in held.items()
            ],
        }  # fmt: skip

    def collective_rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        self.note(body["method"])
        return {"results": [getattr(self, body["method"])(*body["args"])]}

    def reset_prefix_cache(self, body: dict[str, Any]) -> dict[str, Any]:
        self.resets += 1
        self.busy -= 1
        return {"success": self.busy < 0}

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        self.unproven += self.version is None
        if body["max_tokens"] == 99:
            raise ValueError("max_tokens is too large")
        engine = TransformersEngine(Policy(self.model, micro_tokenizer()), batch=64, tolerance=1.0)
        rollouts = engine.generate(
            [Request("", tuple(body["prompt"]))],
            samples=body["n"],
            generation=Generation(temperature=body["temperature"], max_new_tokens=body["max_tokens"]),
            seed=body["seed"],
            stop_ids=body["stop_token_ids"],
        )
        choices = [
            {
                "index": number,
                "token_ids": rollout.response_ids,
                "logprobs": {"token_logprobs": rollout.logprobs},
                "finish_reason": rollout.finish,
            }
            for number, rollout in enumerate(rollouts)
        ]
        return {"choices": choices[::-1]}

    def nothing(self, body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.before(call)

    def die(self) -> None:
        """Nobody listens any more; what is being answered is not."""
        self.before = self._gone
        self._receiver = None
        self._server.shutdown()
        self._server.server_close()

    def _gone(self, call: str) -> None:
        raise Gone

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = path.partition("?")[0]
        routes = {
            "/collective_rpc": self.collective_rpc,
            "/reset_prefix_cache": self.reset_prefix_cache,
            "/v1/completions": self.completions,
            "/sleep": self.nothing,
            "/wake_up": self.nothing,
        }
        self.note(path)
        try:
            with self._one_at_a_time:
                done = routes[path](body)
        except ValueError as error:
            return 400, {"error": str(error)}
        if self.before == self._gone:
            raise Gone
        return 200, done

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        behind = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    status, answer = behind.answer(self.path, body)
                except Gone:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
