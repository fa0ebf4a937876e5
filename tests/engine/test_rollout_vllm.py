"""The client against a stand-in that speaks vLLM's HTTP: what is asked, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import ConfigError, Engine, Generation
from posttrain.engine import rollout_vllm, vllm_broadcast, vllm_server
from posttrain.engine.canary import check_canary
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_vllm import VllmEngine
from posttrain.engine.vllm_ipc import share
from posttrain.errors import StageError
from posttrain.system import System
from tests.engine.conftest import EOS
from tests.engine.vllm_stand_in import StandIn

ENGINE = Engine(
    precision="fp32", zero_stage=0, micro_batch_tokens=4096, rollout="vllm", rollout_batch=8, canary_tolerance=1e-3
)
REQUESTS = [Request("a", (5, 6, 7)), Request("b", (9, 10, 11, 12, 13)), Request("c", (20,))]
SAMPLED = Generation(temperature=1.0, max_new_tokens=8)


def listed(policy: Policy, *servers: StandIn, **more: Any) -> VllmEngine:
    addresses = [f"{one.address}/" for one in servers]
    return VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=addresses, **more))


@pytest.fixture
def engine(stand_in: StandIn, policy: Policy) -> Iterator[VllmEngine]:
    made = listed(policy, stand_in)
    yield made
    made.close()


def test_the_server_gets_the_policy_at_once_and_each_sync_after_it(
    stand_in: StandIn, engine: VllmEngine, policy: Policy
) -> None:
    assert engine.version == 0
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.2)
    with pytest.raises(StageError, match="does not compute with the trainer's weights"):
        check_canary(engine.generate, policy.model, version=engine.version, tolerance=1e-3)
    stand_in.busy = 2
    resets = stand_in.resets
    engine.load_weights(policy.model, 1)
    assert engine.version == stand_in.version == 1
    assert stand_in.resets == resets + 3, "asked again while blocks are held"
    assert stand_in.calls.count("posttrain_identity") == 1, "who a server is does not change"


def test_order_versions_and_what_is_asked(stand_in: StandIn, engine: VllmEngine, policy: Policy) -> None:
    engine.load_weights(policy.model, 4)
    stand_in.asked.clear()
    rollouts = engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=1, stop_ids=(2, 3, 4))
    assert [r.problem_id for r in rollouts] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert all(set(r.version_per_token) == {4} for r in rollouts)
    assert all((r.finish == "stop") == (r.response_ids[-1] in (2, 3, 4)) for r in rollouts)
    asked = stand_in.asked[0]
    assert asked["ignore_eos"] and asked["stop_token_ids"] == [2, 3, 4] and asked["return_token_ids"]
    again = engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=1, stop_ids=(2, 3, 4))
    assert again == rollouts
    assert engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=2, stop_ids=(2, 3, 4)) != rollouts


def test_greedy_is_asked_once_per_prompt(stand_in: StandIn, engine: VllmEngine) -> None:
    stand_in.asked.clear()
    greedy = Generation(temperature=0.0, max_new_tokens=5)
    rollouts = engine.generate(REQUESTS, samples=2, generation=greedy, seed=0)
    assert [asked["n"] for asked in stand_in.asked] == [1, 1, 1]
    assert [asked["stop_token_ids"] for asked in stand_in.asked] == [[EOS]] * 3
    assert rollouts[0] == rollouts[1] and len(rollouts) == 6


def test_weights_by_broadcast_are_those_of_the_files(stand_ins: Callable[[], StandIn], policy: Policy) -> None:
    """Two servers, each with a group of its own; the same answers, and no file is read."""
    by_file, *servers = stand_ins(), stand_ins(), stand_ins()
    engines = [listed(policy, by_file), listed(policy, *servers, vllm_weights="broadcast")]
    for version in (1, 2):
        with torch.no_grad():
            policy.model.get_input_embeddings().weight.mul_(1.2)
        answers = []
        for engine in engines:
            engine.load_weights(policy.model, version)
            answers.append(engine.generate(REQUESTS, samples=3, generation=SAMPLED, seed=version))
        assert answers[0] == answers[1]
    for server in servers:
        assert server.calls.count("posttrain_join") == 1 and "posttrain_load_weights" not in server.calls
        for name, values in server.model.named_parameters():
            assert torch.equal(values, policy.model.get_parameter(name))
    servers[1].keeps = lambda name: name == "model.norm.weight"
    trained(policy)
    with pytest.raises(StageError, match=rf"{servers[1].address}: .*: model\.norm\.weight$"):
        engines[1].load_weights(policy.model, 3)
    for engine in engines:
        engine.close()


def test_a_worker_that_does_not_join_is_the_servers_error(
    stand_in: StandIn, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: str) -> None:
        if call == "posttrain_join":
            raise ValueError("no route to the trainer")

    monkeypatch.setattr(vllm_broadcast, "SECONDS", timedelta(seconds=1))
    stand_in.before = refuse
    with pytest.raises(StageError, match=r"400: .*no route to the trainer"):
        listed(policy, stand_in, vllm_weights="broadcast")


def test_memory_is_shared_on_a_gpu_only(stand_in: StandIn, policy: Policy) -> None:
    with pytest.raises(ConfigError, match=r"vllm_weights: got 'ipc' with the policy on a cpu, wanted 'file' or"):
        listed(policy, stand_in, vllm_weights="ipc")
    assert stand_in.calls == []
    with pytest.raises(ValueError, match="tensors on cpu; wanted: on a GPU"):
        share({"a": torch.zeros(2)})


def trained(policy: Policy) -> None:
    """A step too small for a canary of 1e-3 nats to see."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1 + 1e-6)


@pytest.mark.parametrize("server", [0, 1])
def test_stale_weights_are_refused_whichever_server_has_them(
    server: int, stand_ins: Callable[[], StandIn], policy: Policy
) -> None:
    servers = [stand_ins(), stand_ins()]
    engine = listed(policy, *servers)
    servers[server].keeps = lambda name: True
    trained(policy)
    assert check_canary(engine.generate, policy.model, version=engine.version, tolerance=1e-3) < 1e-3, (
        "stale, and the canary sings"
    )
    with pytest.raises(StageError) as refused:
        engine.load_weights(policy.model, 1)
    total = len(list(policy.model.parameters()))
    assert f"{servers[server].address}: weight sync to version 1 failed" in str(refused.value)
    assert f"{total} of {total} parameters are not the trainer's: model.embed_tokens.weight, " in str(refused.value)
    assert servers[1 - server].address not in str(refused.value)
    engine.close()


def test_a_half_loaded_server_is_told_by_its_layer(stand_in: StandIn, engine: VllmEngine, policy: Policy) -> None:
    stand_in.keeps = lambda name: name == "model.layers.1.mlp.up_proj.weight"
    trained(policy)
    names = r"1 of 24 parameters are not the trainer's: model\.layers\.1\.mlp\.up_proj\.weight$"
    with pytest.raises(StageError, match=names):
        engine.load_weights(policy.model, 1)


def test_an_old_version_and_parameters_without_weights_stop_the_run(
    stand_in: StandIn, engine: VllmEngine, policy: Policy
) -> None:
    stand_in.notes_version = False
    stand_in.missing = ["model.norm.weight"]
    with pytest.raises(StageError, match=r"no weights for model\.norm\.weight; .* it has version 0; wanted: 1$"):
        engine.load_weights(policy.model, 1)


def test_right_parameters_that_are_not_computed_with_stop_the_run(stand_in: StandIn, policy: Policy) -> None:
    """A CPU server that computes with packed copies would look like this."""
    stand_in.keeps = lambda name: True
    stand_in.says_trainers_checksums = True
    with pytest.raises(StageError, match=r"127\.0\.0\.1:\d+: it holds the trainer's parameters.*does not compute with"):
        listed(policy, stand_in)


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 65), ("tokenizer", "another"), ("architecture", "LlamaForCausalLM"), ("precision", "bfloat16")],
)
def test_another_kind_of_model_is_refused_before_it_gets_weights(
    field: str, value: object, stand_ins: Callable[[], StandIn], policy: Policy
) -> None:
    right, wrong = stand_ins(), stand_ins()
    wrong.identity[field] = value
    with pytest.raises(StageError, match=rf"{wrong.address}: {field}: got {value!r}; wanted: "):
        listed(policy, right, wrong)
    assert "posttrain_load_weights" not in wrong.calls and not wrong.asked


def test_a_server_for_shorter_sequences_is_refused(stand_in: StandIn, policy: Policy) -> None:
    stand_in.identity["longest"] = 64
    with pytest.raises(StageError, match="longest sequence: got 64; wanted: at least 128"):
        listed(policy, stand_in)


def test_the_servers_own_words_reach_the_reader(engine: VllmEngine) -> None:
    with pytest.raises(StageError, match=r"400: .*max_tokens is too large"):
        engine.generate(REQUESTS, samples=1, generation=Generation(temperature=1.0, max_new_tokens=99), seed=0)
    assert len(engine.generate(REQUESTS, samples=1, generation=SAMPLED, seed=0)) == 3, "and the engine goes on"


def test_nobody_there_is_a_stage_error(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_vllm, "RETURN_SECONDS", 0.5)
    with pytest.raises(StageError, match=r"ConnectionRefusedError.*wanted: it back within"):
        VllmEngine(policy, engine=ENGINE, system=System(vllm_servers=["http://127.0.0.1:9"]))


def test_close_leaves_no_file(stand_in: StandIn, policy: Policy) -> None:
    made = listed(policy, stand_in)
    folder = made._folder
    assert folder.is_dir()
    made.close()
    assert not folder.exists()


def test_a_server_that_dies_at_start_says_why(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    def command(folder: Path, *, port: int, precision: str, system: System) -> list[str]:
        return [sys.executable, "-c", "print('no such option'); raise SystemExit(3)"]

    monkeypatch.setattr(vllm_server, "server_command", command)
    with pytest.raises(StageError, match=r"code 3:\nno such option"):
        VllmEngine(policy, engine=ENGINE, system=System())
