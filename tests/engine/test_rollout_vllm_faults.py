"""Servers that die, hang up and come back, as stand-ins: who answers then, and how often each request is asked."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import Generation
from posttrain.engine import rollout_vllm
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_vllm import RESTARTS, VllmEngine
from posttrain.engine.vllm_fleet import Fleet, Member
from posttrain.engine.vllm_http import Unreachable
from posttrain.errors import StageError
from posttrain.records import Rollout
from posttrain.system import System
from tests.engine.test_rollout_vllm import ENGINE, listed
from tests.engine.vllm_stand_in import StandIn

MANY = [Request(str(number), tuple(range(3, 4 + number % 5))) for number in range(40)]
SAMPLED = Generation(temperature=1.0, max_new_tokens=8)

Maker = Callable[[], StandIn]


class Own:
    """In place of a server process that the engine starts itself."""

    def __init__(self, behind: StandIn) -> None:
        self.behind, self.address = behind, behind.address

    def wait_until_healthy(self, http: Any) -> None:
        assert http.is_healthy(self.address)

    def last_words(self) -> str:
        return "Killed"

    def close(self) -> None:
        self.behind.die()


@pytest.fixture
def owned(stand_ins: Maker, monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The servers that an engine starts, in order."""
    started: list[StandIn] = []

    def start(folder: Path, **options: Any) -> Own:
        started.append(stand_ins())
        started[-1].before = lambda call: time.sleep(0.2 if call == "posttrain_load_weights" else 0.0)
        return Own(started[-1])

    monkeypatch.setattr(rollout_vllm, "Server", start)
    return started


def undisturbed(policy: Policy, server: StandIn) -> list[Rollout]:
    engine = listed(policy, server)
    rollouts = engine.generate(MANY, samples=2, generation=SAMPLED, seed=1)
    engine.close()
    return rollouts


def dies_at(server: StandIn, call: str, count: int) -> None:
    """The server dies when it is called so for the `count`th time from now on."""
    left = [count]
    lock = threading.Lock()

    def before(its: str) -> None:
        with lock:
            left[0] -= its == call
            if left[0] > 0:
                return
        server.die()
        server.before(its)

    server.before = before


def asked_by_seed(*servers: StandIn) -> Counter[int]:
    return Counter(body["seed"] for server in servers for body in server.asked if body["temperature"] == 1.0)


def test_the_least_loaded_server_is_taken() -> None:
    fleet = Fleet([Member("a"), Member("b"), Member("c")], threading.Event())
    # 900 on a; 100, then 300 on b (100 < 200); 200 on c; a is left alone until the others have as much.
    taken = [fleet.take(tokens) for tokens in (900, 100, 200, 300, 500, 1)]
    assert [lease.address for lease in taken] == ["a", "b", "c", "b", "c", "b"]
    assert [member.outstanding for member in fleet.members] == [900, 401, 700]
    fleet.give_back(taken[0])
    assert fleet.take(5).address == "a"
    fleet.members[0].is_lost = True
    assert fleet.take(1).address == "b"


def test_a_server_that_is_brought_back_is_waited_for_until_the_run_ends() -> None:
    stopped = threading.Event()
    member = Member("a")
    fleet = Fleet([member], stopped)
    lease = fleet.take(1)
    assert lease.is_valid()
    fleet.dies(member)
    assert not lease.is_valid(), "it answered as another server, if at all"
    threading.Timer(0.2, fleet.returns, [member]).start()
    assert fleet.take(1).life == 1
    fleet.dies(member)
    threading.Timer(0.2, stopped.set).start()
    with pytest.raises(Unreachable, match="the run ends"):
        fleet.take(1)


def test_a_slow_server_gets_less_and_the_answers_are_the_same(stand_ins: Maker, policy: Policy) -> None:
    expected = undisturbed(policy, stand_ins())
    slow, fast = stand_ins(), stand_ins()
    engine = listed(policy, slow, fast)
    slow.before = lambda call: time.sleep(0.3)
    engine._pool._max_workers = 4  # so that it shows who is free
    assert engine.generate(MANY, samples=2, generation=SAMPLED, seed=1) == expected
    engine.close()
    assert asked_by_seed(slow).total() < asked_by_seed(fast).total()
    assert [member.outstanding for member in engine._fleet.members] == [0, 0]


def test_a_server_that_dies_while_it_samples_is_restarted_and_asked_what_is_missing(
    owned: list[StandIn], stand_ins: Maker, policy: Policy
) -> None:
    expected = undisturbed(policy, stand_ins())
    engine = VllmEngine(policy, engine=ENGINE, system=System())
    engine._pool._max_workers = 8  # so that some have not been asked yet when it dies
    dies_at(owned[0], "/v1/completions", 15)
    # The trainer may be ahead of the weights that are sampled from: they come from the file, not from the model.
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.2)
    state = torch.get_rng_state()
    assert engine.generate(MANY, samples=2, generation=SAMPLED, seed=1) == expected
    assert torch.equal(torch.get_rng_state(), state), "a restart must not change what the trainer draws"
    assert engine.restarts == 1 and len(owned) == 2
    assert owned[1].calls[:4] == ["/collective_rpc", "posttrain_identity", "/collective_rpc", "posttrain_load_weights"]
    assert owned[1].unproven == 0, "nobody asks a server that has random weights yet"
    again = asked_by_seed(owned[1])
    assert set(again.values()) == {1}, "each unfinished request once"
    assert asked_by_seed(*owned).keys() == asked_by_seed(owned[0]).keys() | again.keys()
    engine.close()


@pytest.mark.parametrize(
    ("call", "transport"),
    [
        ("posttrain_load_weights", "file"),
        ("posttrain_receive_weights", "broadcast"),
        ("posttrain_checksums", "broadcast"),
        ("/reset_prefix_cache", "file"),
    ],
)
def test_a_server_that_dies_in_a_sync_is_restarted_with_the_new_weights(
    call: str, transport: str, owned: list[StandIn], policy: Policy
) -> None:
    engine = VllmEngine(policy, engine=ENGINE, system=System.model_validate({"vllm_weights": transport}))
    dies_at(owned[0], call, 1)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.2)
    engine.load_weights(policy.model, 1)
    assert (engine.restarts, engine.version, owned[1].version) == (1, 1, 1)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(dict(owned[1].model.named_parameters())[name], parameter)
    engine.close()


def test_a_server_that_dies_again_and_again_stops_the_run(
    owned: list[StandIn], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(policy, engine=ENGINE, system=System())
    owned[0].die()
    real = rollout_vllm.Server

    def dies(folder: Path, **options: Any) -> Any:
        made = real(folder, **options)
        dies_at(made.behind, "posttrain_checksums", 1)
        return made

    monkeypatch.setattr(rollout_vllm, "Server", dies)
    with pytest.raises(StageError, match=f"after {RESTARTS} restarts; wanted: no more\nKilled"):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    engine.close()
    assert engine.restarts == RESTARTS and len(owned) == 1 + RESTARTS


def test_a_restarted_server_that_cannot_prove_its_weights_stops_the_run(
    owned: list[StandIn], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(policy, engine=ENGINE, system=System())
    make = rollout_vllm.Server

    def stale(folder: Path, **options: Any) -> Any:
        made = make(folder, **options)
        made.behind.keeps = lambda name: "layers.0" in name
        return made

    monkeypatch.setattr(rollout_vllm, "Server", stale)
    owned[0].die()
    # All of a layer but its norms, which are ones in any new model.
    with pytest.raises(StageError, match=r"7 of 24 parameters are not the trainer's: model\.layers\.0\."):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    engine.close()
    assert not owned[1].asked


def test_other_listed_servers_take_over_and_a_lost_one_may_return(stand_ins: Maker, policy: Policy) -> None:
    expected = undisturbed(policy, stand_ins())
    leaves, stays = stand_ins(), stand_ins()
    engine = listed(policy, leaves, stays)
    dies_at(leaves, "/v1/completions", 5)
    assert engine.generate(MANY, samples=2, generation=SAMPLED, seed=1) == expected
    assert engine.restarts == 0 and [member.is_lost for member in engine._fleet.members] == [True, False]
    engine.load_weights(policy.model, 1)
    assert engine._fleet.alive() == [engine._fleet.members[1]], "still gone at the next sync"
    back = stand_ins()
    engine._fleet.members[0].address = back.address
    engine.load_weights(policy.model, 2)
    assert back.version == 2 and "posttrain_identity" in back.calls and back.asked
    engine.close()


def test_the_last_listed_server_is_waited_for_and_gets_the_weights_again(
    stand_ins: Maker, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_vllm, "RETURN_SECONDS", 5.0)
    first, second = stand_ins(), stand_ins()
    engine = listed(policy, first)
    dies_at(first, "/v1/completions", 1)
    member = engine._fleet.members[0]

    def moves() -> None:
        time.sleep(0.3)
        member.address = second.address

    threading.Thread(target=moves).start()
    assert len(engine.generate(MANY, samples=2, generation=SAMPLED, seed=1)) == 80
    assert engine.restarts == 1 and second.version == 0
    engine.close()


def test_a_listed_server_that_was_started_anew_behind_our_back_is_found_out(stand_in: StandIn, policy: Policy) -> None:
    engine = listed(policy, stand_in)
    stand_in.version = None
    with pytest.raises(StageError, match=f"{stand_in.address}: version of the weights after sampling: got None"):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    engine.close()


def test_the_last_listed_server_is_not_waited_for_longer(
    stand_in: StandIn, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_vllm, "RETURN_SECONDS", 0.4)
    engine = listed(policy, stand_in)
    stand_in.die()
    began = time.monotonic()
    with pytest.raises(StageError, match=rf"{stand_in.address}.*no other server is left; wanted: it back within 0 s"):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    assert time.monotonic() - began < 5.0
    engine.close()


def test_a_stopped_run_leaves_no_request_behind(stand_in: StandIn, policy: Policy) -> None:
    """One request is refused while another is being answered: nobody waits for that one."""
    engine = listed(policy, stand_in)
    answered = threading.Event()

    def slow(call: str) -> None:
        if call == "/v1/completions" and len(stand_in.asked) == 3 + 3:  # the canary's before
            answered.wait(20.0)

    stand_in.before = slow
    began = time.monotonic()
    with pytest.raises(StageError, match="400"):
        engine.generate(MANY[:8], samples=1, generation=Generation(temperature=1.0, max_new_tokens=99), seed=1)
    assert time.monotonic() - began < 10.0
    answered.set()
    assert not engine._http._open
    engine.close()


def test_servers_sleep_and_have_no_weights_until_the_next_sync(stand_ins: Maker, policy: Policy) -> None:
    servers = [stand_ins(), stand_ins()]
    system = System(vllm_servers=[one.address for one in servers], vllm_sleep=True)
    engine = VllmEngine(policy, engine=ENGINE, system=system)
    for one in servers:
        one.calls.clear()
    engine.pause()
    with pytest.raises(StageError, match="no weights since pause"):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    engine.resume()
    with pytest.raises(StageError, match="no weights since pause"):
        engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)
    engine.load_weights(policy.model, 1)
    assert len(engine.generate(MANY, samples=1, generation=SAMPLED, seed=1)) == len(MANY)
    for one in servers:
        calls = [call for call in one.calls if call not in ("/collective_rpc", "/reset_prefix_cache")]
        assert calls[:5] == [
            "/sleep", "/wake_up", "posttrain_load_weights", "posttrain_checksums", "/v1/completions",
        ]  # fmt: skip
    engine.close()
