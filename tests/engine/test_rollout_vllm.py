"""The client against a stand-in that speaks vLLM's HTTP, and (marker `vllm`) against the real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import Engine, Generation
from posttrain.engine import rollout_vllm
from posttrain.engine.canary import check_canary, largest_difference
from posttrain.engine.policy import Policy, build_micro
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.engine.rollout_vllm import VllmEngine
from posttrain.errors import StageError
from posttrain.system import System
from tests.engine.conftest import EOS, MICRO, PAD, VOCAB, micro_model, micro_tokenizer

ENGINE = Engine(precision="fp32", zero_stage=0, rollout="vllm", rollout_batch=8, canary_tolerance=1e-3)
REQUESTS = [Request("a", (5, 6, 7)), Request("b", (9, 10, 11, 12, 13)), Request("c", (20,))]
SAMPLED = Generation(temperature=1.0, max_new_tokens=8)


class StandIn:
    """The routes of vLLM that are used, over a model of its own."""

    def __init__(self) -> None:
        self.model = micro_model(seed=7)
        self.asked: list[dict[str, Any]] = []
        self.resets = 0
        self.busy = 0
        self.missing: list[str] = []
        self.loads = True
        """False: reports success and keeps the old weights."""

    def collective_rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["method"] == "posttrain_load_weights"
        if self.loads:
            self.model.load_state_dict(load_file(Path(body["args"][0]) / "model.safetensors"), strict=False)
        return {"results": [{"missing": self.missing}]}

    def reset_prefix_cache(self, body: dict[str, Any]) -> dict[str, Any]:
        self.resets += 1
        self.busy -= 1
        return {"success": self.busy < 0}

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
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


@pytest.fixture
def stand_in() -> Iterator[tuple[StandIn, str]]:
    behind = StandIn()
    routes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "/collective_rpc": behind.collective_rpc,
        "/reset_prefix_cache": behind.reset_prefix_cache,
        "/v1/completions": behind.completions,
    }

    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                with one_at_a_time:
                    status, answer = 200, routes[self.path](body)
            except ValueError as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield behind, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(stand_in: tuple[StandIn, str], policy: Policy) -> Iterator[VllmEngine]:
    made = VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=[stand_in[1]]))
    yield made
    made.close()


def test_the_server_gets_the_policy_at_once_and_each_sync_after_it(
    stand_in: tuple[StandIn, str], engine: VllmEngine, policy: Policy
) -> None:
    assert engine.version == 0
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.2)
    with pytest.raises(StageError, match="does not use the trainer's weights"):
        check_canary(engine, policy.model, tolerance=1e-3)
    stand_in[0].busy = 2
    resets = stand_in[0].resets
    engine.load_weights(policy.model, 1)
    assert engine.version == 1
    assert stand_in[0].resets == resets + 3, "asked again while blocks are held"


def test_order_versions_and_what_is_asked(stand_in: tuple[StandIn, str], engine: VllmEngine, policy: Policy) -> None:
    engine.load_weights(policy.model, 4)
    stand_in[0].asked.clear()
    rollouts = engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=1, stop_ids=(2, 3, 4))
    assert [r.problem_id for r in rollouts] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert all(set(r.version_per_token) == {4} for r in rollouts)
    assert all((r.finish == "stop") == (r.response_ids[-1] in (2, 3, 4)) for r in rollouts)
    asked = stand_in[0].asked[0]
    assert asked["ignore_eos"] and asked["stop_token_ids"] == [2, 3, 4] and asked["return_token_ids"]
    again = engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=1, stop_ids=(2, 3, 4))
    assert again == rollouts
    assert engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=2, stop_ids=(2, 3, 4)) != rollouts


def test_greedy_is_asked_once_per_prompt(stand_in: tuple[StandIn, str], engine: VllmEngine) -> None:
    stand_in[0].asked.clear()
    greedy = Generation(temperature=0.0, max_new_tokens=5)
    rollouts = engine.generate(REQUESTS, samples=2, generation=greedy, seed=0)
    assert [asked["n"] for asked in stand_in[0].asked] == [1, 1, 1]
    assert [asked["stop_token_ids"] for asked in stand_in[0].asked] == [[EOS]] * 3
    assert rollouts[0] == rollouts[1] and len(rollouts) == 6


def test_a_server_that_keeps_old_weights_stops_the_run(stand_in: tuple[StandIn, str], policy: Policy) -> None:
    stand_in[0].loads = False
    with pytest.raises(StageError, match="does not use the trainer's weights"):
        VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=[stand_in[1]]))


def test_parameters_without_weights_stop_the_run(stand_in: tuple[StandIn, str], policy: Policy) -> None:
    stand_in[0].missing = ["model.norm.weight"]
    with pytest.raises(StageError, match=r"no weights for model\.norm\.weight"):
        VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=[stand_in[1]]))


def test_the_servers_own_words_reach_the_reader(engine: VllmEngine) -> None:
    with pytest.raises(StageError, match=r"400: .*max_tokens is too large"):
        engine.generate(REQUESTS, samples=1, generation=Generation(temperature=1.0, max_new_tokens=99), seed=0)


def test_nobody_there_is_a_stage_error(policy: Policy) -> None:
    with pytest.raises(StageError, match="wanted: an answer"):
        VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=["http://127.0.0.1:9"]))


def test_close_leaves_no_file(stand_in: tuple[StandIn, str], policy: Policy) -> None:
    made = VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=[stand_in[1]]))
    folder = made._folder
    assert folder.is_dir()
    made.close()
    assert not folder.exists()


def test_a_server_that_dies_at_start_says_why(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    def command(folder: Path, *, port: int, precision: str) -> list[str]:
        return ["python", "-c", "print('no such option'); raise SystemExit(3)"]

    monkeypatch.setattr(rollout_vllm, "server_command", command)
    with pytest.raises(StageError, match=r"code 3:\nno such option"):
        VllmEngine(policy, engine=ENGINE, system=System())


@pytest.mark.vllm
def test_a_real_server_samples_from_the_weights_it_was_given() -> None:
    # 32 is the smallest head width of vLLM's attention on a CPU.
    wide = MICRO.model_copy(update={"head_dim": 32})
    model = build_micro(wide, vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, seed=0)
    engine = VllmEngine(Policy(model, micro_tokenizer()), engine=ENGINE, system=System())
    try:
        for temperature in (1.0, 0.5):
            generation = Generation(temperature=temperature, max_new_tokens=20)
            rollouts = engine.generate(REQUESTS * 8, samples=4, generation=generation, seed=3)
            again = engine.generate(REQUESTS * 8, samples=4, generation=generation, seed=3)
            # Which requests share a batch depends on when they arrive, and rounding on the batch.
            same = [(a, b) for a, b in zip(rollouts, again, strict=True) if a.response_ids == b.response_ids]
            assert len(same) > 0.9 * len(rollouts)
            assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-4) for a, b in same)
            assert len({r.response_ids for r in rollouts}) > 64
            assert largest_difference(rollouts, model, temperature=temperature) < 1e-4
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        with pytest.raises(StageError, match="does not use the trainer's weights"):
            check_canary(engine, model, tolerance=1e-3)
        engine.load_weights(model, 1)
        assert check_canary(engine, model, tolerance=1e-3) < 1e-4
    finally:
        engine.close()
