"""The engine with real vLLM servers on micro models: what they sample from, and what is left of them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from posttrain.config import Engine, Generation
from posttrain.engine.canary import check_canary, largest_difference
from posttrain.engine.policy import Policy, build_micro
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_vllm import VllmEngine
from posttrain.engine.vllm_weights import differences
from posttrain.errors import StageError
from posttrain.guard import _descendants
from posttrain.system import System
from tests.engine.conftest import EOS, MICRO, PAD, micro_tokenizer

pytestmark = pytest.mark.vllm

FP32 = Engine(
    precision="fp32", zero_stage=0, micro_batch_tokens=4096, rollout="vllm", rollout_batch=8, canary_tolerance=1e-3
)
BF16 = FP32.model_copy(update={"precision": "bf16", "canary_tolerance": 0.1})
REQUESTS = [Request("a", (5, 6, 7)), Request("b", (9, 10, 11, 12, 13)), Request("c", (20,))]
LONG = Generation(temperature=1.0, max_new_tokens=100)
ODD_VOCABULARY = 70
"""No multiple of 64: vLLM pads it."""


def qwen_model() -> PreTrainedModel:
    # 32 is the smallest head width of vLLM's attention on a CPU.
    wide = MICRO.model_copy(update={"head_dim": 32})
    return build_micro(wide, vocab_size=ODD_VOCABULARY, eos_id=EOS, pad_id=PAD, seed=0)


def llama_model() -> PreTrainedModel:
    """Untied, with biases, one key-value head, bf16."""
    torch.manual_seed(5)
    architecture = LlamaConfig(
        vocab_size=ODD_VOCABULARY, hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, eos_token_id=EOS, pad_token_id=PAD,
        bos_token_id=None, tie_word_embeddings=False, attention_bias=True, dtype="bfloat16",
    )  # fmt: skip
    return LlamaForCausalLM(architecture).to(torch.bfloat16).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return qwen_model()


@pytest.fixture(scope="module")
def shared(model: PreTrainedModel) -> Iterator[VllmEngine]:
    made = VllmEngine(Policy(model, micro_tokenizer()), engine=FP32, system=System())
    yield made
    folder, port = made._folder, int(made._fleet.members[0].address.rpartition(":")[2])
    processes = pids(made)
    made.close()
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


@pytest.fixture
def engine(shared: VllmEngine) -> VllmEngine:
    shared.restarts = 0
    return shared


def pids(engine: VllmEngine) -> set[int]:
    """Of the guard, vLLM's front and its engine, and whatever they started."""
    server = engine._fleet.members[0].server
    assert server is not None
    return {server.pid} | _descendants(server.pid)


def kill(engine: VllmEngine) -> None:
    """All of vLLM, as the out-of-memory killer might; the guard stays."""
    server = engine._fleet.members[0].server
    assert server is not None
    for pid in _descendants(server.pid):
        os.kill(pid, signal.SIGKILL)


def change(model: PreTrainedModel, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


def held_by(engine: VllmEngine) -> list[dict]:
    return engine._call(engine._fleet.members[0], "posttrain_checksums")


def test_a_real_server_samples_from_the_weights_it_was_given(engine: VllmEngine, model: PreTrainedModel) -> None:
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
    change(model, 1.5)
    with pytest.raises(StageError, match="does not compute with the trainer's weights"):
        check_canary(engine.generate, model, version=engine.version, tolerance=1e-3)
    engine.load_weights(model, 1)
    assert check_canary(engine.generate, model, version=engine.version, tolerance=1e-3) < 1e-4


def each_parameter_is_told_apart(engine: VllmEngine, model: PreTrainedModel) -> None:
    """One changed value of a parameter is seen, and blamed on that parameter alone, fused or not."""
    held = held_by(engine)
    parameters = dict(model.named_parameters())
    assert differences(held, parameters) == []
    for name, parameter in parameters.items():
        changed = parameter.detach().clone()
        changed.view(-1)[-1] += 1.0
        assert differences(held, parameters | {name: changed}) == [name]


def test_what_a_real_server_holds_is_read_parameter_by_parameter(engine: VllmEngine, model: PreTrainedModel) -> None:
    each_parameter_is_told_apart(engine, model)


def test_a_real_server_takes_weights_by_broadcast(engine: VllmEngine, model: PreTrainedModel) -> None:
    member = engine._fleet.members[0]
    engine._system, member.is_known = System(vllm_weights="broadcast"), False
    try:
        for version in (7, 8):
            change(model, 1.01)
            engine.load_weights(model, version)
        assert member.channel is not None
    finally:
        engine._system, member.channel = System(), None
    assert check_canary(engine.generate, model, version=8, tolerance=1e-3) < 1e-4


def while_sampling(engine: VllmEngine, act: Callable[[VllmEngine], None]) -> None:
    """What is being sampled when the server dies comes all the same, each sample once."""

    def later() -> None:
        time.sleep(0.3)
        act(engine)

    thread = threading.Thread(target=later)
    thread.start()
    rollouts = engine.generate(REQUESTS * 30, samples=16, generation=LONG, seed=5, stop_ids=())
    thread.join()
    assert engine.restarts == 1
    assert [r.problem_id for r in rollouts] == [r.problem_id for r in REQUESTS * 30 for _ in range(16)]
    assert len({r.response_ids for r in rollouts}) == len(rollouts), "no sample is there twice"


@pytest.mark.slow
def test_a_server_killed_while_it_samples_is_brought_back_with_its_weights(
    engine: VllmEngine, model: PreTrainedModel
) -> None:
    engine.load_weights(model, 2)
    before = pids(engine)
    while_sampling(engine, kill)
    assert not before & pids(engine)
    assert engine.version == 2 and {worker["version"] for worker in held_by(engine)} == {2}
    assert check_canary(engine.generate, model, version=engine.version, tolerance=1e-3) < 1e-4


def test_a_server_sleeps_and_wakes(engine: VllmEngine, model: PreTrainedModel) -> None:
    """On a CPU it has nothing to give back, and must be usable again all the same."""
    engine._system = System(vllm_sleep=True)
    try:
        engine.pause()
        change(model, 1.01)
        engine.resume()
        engine.load_weights(model, 3)
    finally:
        engine._system = System()
    assert check_canary(engine.generate, model, version=engine.version, tolerance=1e-3) < 1e-4


@pytest.mark.slow
def test_a_server_killed_while_it_loads_is_brought_back_with_the_new_weights(
    engine: VllmEngine, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = engine._call

    def last_act(member, method, *arguments):
        if method == "posttrain_load_weights" and engine.restarts == 0:
            kill(engine)
        return call(member, method, *arguments)

    monkeypatch.setattr(engine, "_call", last_act)
    change(model, 1.01)
    engine.load_weights(model, 4)
    assert engine.restarts == 1 and engine.version == 4
    assert differences(held_by(engine), dict(model.named_parameters())) == []


@pytest.mark.slow
def test_a_server_killed_between_two_calls_is_brought_back(engine: VllmEngine, model: PreTrainedModel) -> None:
    kill(engine)
    rollouts = engine.generate(REQUESTS, samples=2, generation=LONG, seed=6)
    assert engine.restarts == 1 and len(rollouts) == 6
    assert largest_difference(rollouts, model) < 1e-4


@pytest.mark.slow
def test_the_death_of_vllms_inner_process_is_one_too(engine: VllmEngine) -> None:
    """The front lives on for a moment and answers with an internal error."""

    def kill_innermost(engine: VllmEngine) -> None:
        inner = [pid for pid in pids(engine) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert inner
        for pid in inner:
            os.kill(pid, signal.SIGKILL)

    while_sampling(engine, kill_innermost)


@pytest.mark.slow
def test_a_llama_with_biases_in_bf16_is_read_parameter_by_parameter() -> None:
    model = llama_model()
    engine = VllmEngine(Policy(model, micro_tokenizer()), engine=BF16, system=System())
    try:
        each_parameter_is_told_apart(engine, model)
    finally:
        engine.close()
