"""Sampling by vLLM servers over their own HTTP API: token ids in, token ids and log-probabilities out.

A server is started here on the loopback address, or servers that run elsewhere are used by address (started with
posttrain.engine.vllm_server). It starts with random weights and gets the policy's at once: as safetensors in
memory-backed files that it must see too, by a broadcast, or out of the trainer's own memory on the GPU they share.
After every sync each server proves what it holds: its version, the bytes of every parameter, and its own canary.

A server that dies is brought back with the weights that were loaded last, proven again, and asked again what it had
not answered; with several listed servers the others take over its requests, and it is asked at the next sync whether it
is there again. Every wait has a deadline. docs/rollouts.md tells it at length.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.canary import check_canary
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.vllm_broadcast import Channel
from posttrain.engine.vllm_fleet import Fleet, Member
from posttrain.engine.vllm_http import Call, Http, Unreachable
from posttrain.engine.vllm_ipc import share
from posttrain.engine.vllm_plugin import WeightSync
from posttrain.engine.vllm_round import Round
from posttrain.engine.vllm_server import NAME, VLLM_DTYPES, Server, save_architecture
from posttrain.engine.vllm_weights import SavedWeights, check_identity, check_weights
from posttrain.errors import StageError
from posttrain.records import Finish, Rollout
from posttrain.system import System

SYNC_SECONDS = 300.0
GENERATE_SECONDS = 3600.0
"""Deadlines: for one weight load, for one request with all its samples."""
RETURN_SECONDS = 60.0
"""How long a listed server that is gone may take to be back, when no other is there: somebody restarts it, or not."""
RESTARTS = 3
"""Of one engine. What kills a server again and again (memory, a driver) is not cured by starting it once more."""
_AT_ONCE = 256
"""Requests in flight per server; the servers batch by themselves."""
_ABORT_SECONDS = 30.0


class VllmEngine:
    """RolloutEngine on one or more servers."""

    def __init__(self, policy: Policy, *, engine: config.Engine, system: System) -> None:
        self.version = 0
        self.restarts = 0
        self._has_weights = False
        self._policy, self._engine, self._system = policy, engine, system
        if system.vllm_weights == "ipc" and policy.model.device.type != "cuda":
            raise config.ConfigError(
                f"system.yaml: vllm_weights: got 'ipc' with the policy on a {policy.model.device.type}, "
                "wanted 'file' or 'broadcast': memory is shared on a GPU only"
            )
        self._http = Http()
        self._recovering = threading.Lock()
        self._starting = threading.Lock()
        self._is_closed = False
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="posttrain-", dir=memory if memory.is_dir() else None))
        self._saved = SavedWeights(self._folder / "weights")
        self._fleet = Fleet([Member(address.rstrip("/")) for address in system.vllm_servers], self._http.stopped)
        self._pool = ThreadPoolExecutor(_AT_ONCE * max(1, len(system.vllm_servers)), thread_name_prefix="vllm")
        try:
            if not system.vllm_servers:
                save_architecture(policy, self._folder / "model")
                self._fleet.members.append(Member(""))
                self._start(self._fleet.members[0])
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
        if not self._has_weights:
            raise StageError("generate: the servers have no weights since pause(); wanted: resume() and load_weights()")
        ask = self._asker(samples=samples, generation=generation, seed=seed, stop_ids=stop_ids)
        asked = Round(
            self._fleet,
            self._pool,
            ask=lambda address, i, call: ask(address, requests[i], i, version=self.version, call=call),
            tokens=[len(request.prompt_ids) + samples * generation.max_new_tokens for request in requests],
            recover=self._recover,
            say=_say,
        )
        try:
            rollouts = asked.run()
            self._check_versions()
            return rollouts
        except BaseException:
            self._abort(asked.futures)
            raise

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        self._saved.write(model, version)

        def sync(member: Member) -> None:
            if member.is_lost and not self._http.is_healthy(member.address):
                return
            life = member.life
            try:
                self._sync(member, model)
                self._fleet.returns(member)
            except Unreachable as error:
                self._recover(member, life, error)

        list(self._pool.map(sync, self._fleet.members))
        self.version, self._has_weights = version, True

    def pause(self) -> None:
        """With `vllm_sleep`, servers drop weights and cache; on a CPU they have no way to, and keep them."""
        if self._system.vllm_sleep:
            self._has_weights = False
            # Level 2: the next weights come whole, so that a copy of these would be for nothing.
            self._tell_all("/sleep?level=2")

    def resume(self) -> None:
        if self._system.vllm_sleep:
            self._tell_all("/wake_up")

    def close(self) -> None:
        self._is_closed = True
        self._http.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._starting:
            for member in self._fleet.members:
                if member.server is not None:
                    member.server.close()
                    member.server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _asker(
        self,
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None,
        seconds: float = GENERATE_SECONDS,
    ) -> _Ask:
        greedy = generation.temperature == 0
        common = {
            "model": NAME,
            "n": 1 if greedy else samples,
            "max_tokens": generation.max_new_tokens,
            "temperature": generation.temperature,
            "stop_token_ids": [self._policy.tokenizer.eos_token_id] if stop_ids is None else list(stop_ids),
            # Only the ids above end a response, not those of the model's own configuration.
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        return _Ask(self._http, common, seed=seed, times=samples if greedy else 1, seconds=seconds)

    def _sync(self, member: Member, model: PreTrainedModel) -> None:
        """Let one server load the saved weights, and prove that it has them; `model` has them too."""
        address, version = member.address, self._saved.version
        if not member.is_known:
            workers = self._call(member, WeightSync.posttrain_identity.__name__)
            check_identity(workers, self._policy, precision=self._engine.precision, address=address)
            if self._system.vllm_weights == "broadcast":
                call = functools.partial(self._call, member)
                member.channel = Channel(call, address=address, workers=len(workers), device=model.device)
            member.is_known = True
        loads = self._send(member, model)
        holds = self._call(member, WeightSync.posttrain_checksums.__name__)
        check_weights(loads, holds, model, version=version, address=address)
        # Keys and values of the old weights must not serve prompts of the new ones.
        self._reset_prefix_cache(address)

        def sample(requests: Sequence[Request], **how: Any) -> list[Rollout]:
            """Of this server alone, which is not brought back when it is gone."""
            ask = self._asker(**how, seconds=SYNC_SECONDS)
            return [r for i, request in enumerate(requests) for r in ask(address, request, i, version=version)]

        try:
            check_canary(sample, model, version=version, tolerance=self._engine.canary_tolerance)
        except Unreachable:
            raise
        except StageError as error:
            raise StageError(f"{address}: it holds the trainer's parameters, byte for byte, yet {error}") from error

    def _send(self, member: Member, model: PreTrainedModel) -> list[dict[str, Any]]:
        version = self._saved.version
        # In the servers' type: it is what they round to, and half as much to send.
        dtype = getattr(torch, VLLM_DTYPES[self._engine.precision])
        if member.channel is not None:
            return member.channel.send(dict(model.named_parameters()), dtype=dtype, version=version)
        if self._system.vllm_weights == "ipc":
            rounded = {name: values.detach().to(dtype) for name, values in model.named_parameters()}
            return self._call(member, WeightSync.posttrain_load_shared_weights.__name__, share(rounded), version)
        return self._call(member, WeightSync.posttrain_load_weights.__name__, str(self._saved.folder), version)

    def _call(self, member: Member, method: str, *arguments: Any) -> list[dict[str, Any]]:
        """One of WeightSync's methods, on every worker of a server."""
        call = {"method": method, "args": list(arguments)}
        try:
            return self._http.post(member.address, "/collective_rpc", call, seconds=SYNC_SECONDS)["results"]
        except Unreachable:
            raise
        except StageError as error:
            wanted = "wanted: a server started by posttrain.engine.vllm_server"
            raise StageError(f"{error}; {wanted}{member.last_words()}") from error

    def _check_versions(self) -> None:
        """Raises StageError when a listed server was started anew behind our back, and sampled from random weights."""
        for member in self._fleet.alive():
            if member.server is not None:
                continue
            life = member.life
            try:
                workers = self._call(member, WeightSync.posttrain_weights_version.__name__)
            except Unreachable as error:
                self._recover(member, life, error)
                continue
            for worker in workers:
                if worker["version"] != self.version:
                    raise StageError(
                        f"{member.address}: version of the weights after sampling: got {worker['version']}; "
                        f"wanted: {self.version}, as loaded; it was started anew, or another run uses it"
                    )

    def _tell_all(self, path: str) -> None:
        for member in self._fleet.alive():
            # One that is gone has given back everything, and the next sync brings it back.
            with contextlib.suppress(Unreachable):
                self._http.post(member.address, path, {}, seconds=SYNC_SECONDS)

    def _reset_prefix_cache(self, address: str) -> None:
        end = time.monotonic() + SYNC_SECONDS
        # Refused while blocks are still held by requests that have just ended.
        while not self._http.post(address, "/reset_prefix_cache", {}, seconds=SYNC_SECONDS)["success"]:
            if time.monotonic() > end:
                raise StageError(f"{address}: the prefix cache could not be reset within {SYNC_SECONDS:.0f} s")
            time.sleep(0.05)

    def _recover(self, member: Member, life: int, error: Unreachable) -> None:
        """Make it possible to go on without what `error` says is gone; `life`: which life of the server that was."""
        with self._recovering:
            if self._http.stopped.is_set():
                raise error
            if member.life != life or member.is_lost:
                return  # another request noticed first
            self._fleet.dies(member)
            if member.server is None and len(self._fleet.alive()) > 1:
                member.is_lost = True
                _say(f"{error}; the other servers take over until it is back")
                return
            model = self._saved.load()
            while True:
                try:
                    self._bring_back(member, error)
                    self._sync(member, model)
                except Unreachable as again:
                    error = again
                else:
                    self._fleet.returns(member)
                    return

    def _bring_back(self, member: Member, error: Unreachable) -> None:
        if self.restarts >= RESTARTS:
            raise StageError(
                f"{error}; it is the failure after {RESTARTS} restarts; wanted: no more{member.last_words()}"
            ) from error
        self.restarts += 1
        if member.server is not None:
            _say(f"{error}; restart {self.restarts} of at most {RESTARTS}{member.last_words(lines=3)}")
            self._start(member)
            return
        end = time.monotonic() + RETURN_SECONDS
        _say(f"{error}; waiting for it for {RETURN_SECONDS:.0f} s")
        while not self._http.is_healthy(member.address):
            if time.monotonic() > end or self._http.stopped.is_set():
                raise StageError(f"{error}; no other server is left; wanted: it back within {RETURN_SECONDS:.0f} s")
            time.sleep(0.2)

    def _start(self, member: Member) -> None:
        """A new process for a server of this stage, in place of the one it had."""
        with self._starting:
            if self._is_closed:
                raise StageError("the engine was closed while a server was to be started")
            if member.server is not None:
                member.server.close()
            member.server = Server(self._folder / "model", precision=self._engine.precision, system=self._system)
            member.address = member.server.address
        member.server.wait_until_healthy(self._http)

    def _abort(self, futures: Sequence[Future[None]]) -> None:
        """End what is in flight: a later call must not find it, nor this process wait for it at its end."""
        for future in futures:
            future.cancel()
        self._http.stop()
        if not wait(futures, timeout=_ABORT_SECONDS).not_done:
            self._http.stopped.clear()


@dataclass(frozen=True, slots=True)
class _Ask:
    """How the requests of one call are put to a server; who answers makes no difference to the answer."""

    http: Http
    common: Mapping[str, Any]
    seed: int
    times: int
    """A greedy response is asked for once, and stands for all samples."""
    seconds: float

    def __call__(
        self, address: str, request: Request, index: int, *, version: int, call: Call | None = None
    ) -> list[Rollout]:
        number = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        body = {**self.common, "prompt": list(request.prompt_ids), "seed": number}
        answer = self.http.post(address, "/v1/completions", body, seconds=self.seconds, call=call)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(self.common["n"])):
            raise StageError(f"{address}: vLLM sent {len(choices)} samples; wanted: {self.common['n']}")
        return [_read_choice(request, choice, version) for choice in choices] * self.times


def _read_choice(request: Request, choice: Mapping[str, Any], version: int) -> Rollout:
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if len(ids) != len(logprobs):
        raise StageError(f"vLLM sent {len(ids)} token ids and {len(logprobs)} log-probabilities; wanted: equal numbers")
    finish: Finish = "stop" if choice["finish_reason"] == "stop" else "length"
    return Rollout(request.problem_id, request.prompt_ids, tuple(ids), tuple(logprobs), finish, (version,) * len(ids))


def _say(text: str) -> None:
    print(f"vllm: {text}", file=sys.stderr, flush=True)
