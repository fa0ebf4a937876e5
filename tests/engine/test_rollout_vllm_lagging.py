"""A server that lags: an idle one is asked too, one answer counts, and nothing is left running."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain.engine import vllm_round
from posttrain.engine.policy import Policy
from posttrain.engine.vllm_http import Call, Ended, Http
from tests.engine.test_rollout_vllm import REQUESTS, SAMPLED, listed
from tests.engine.test_rollout_vllm_faults import MANY, asked_by_seed, undisturbed
from tests.engine.vllm_stand_in import Gone, StandIn

Maker = Callable[[], StandIn]


class Hanging:
    """Some requests of a server get no answer until `release`; then they get one that nobody waits for."""

    def __init__(self, server: StandIn, *, first: int, count: int) -> None:
        self.held, self.released = 0, threading.Event()
        self._numbers = range(first, first + count)
        self._seen = 0
        self._lock = threading.Lock()
        server.before = self._before

    def _before(self, call: str) -> None:
        if call != "/v1/completions":
            return
        with self._lock:
            self._seen += 1
            if self._seen not in self._numbers:
                return
            self.held += 1
        self.released.wait(60.0)
        raise Gone


def test_an_idle_server_answers_what_another_sits_on(stand_ins: Maker, policy: Policy) -> None:
    expected = undisturbed(policy, stand_ins())
    servers = [stand_ins(), stand_ins()]
    engine = listed(policy, *servers)
    hanging = Hanging(servers[0], first=2, count=3)
    rollouts = engine.generate(MANY, samples=2, generation=SAMPLED, seed=1)
    assert hanging.held == 3 and not hanging.released.is_set(), "the call ended though three requests hung"
    assert rollouts == expected, "each sample once, and the same"
    counts = asked_by_seed(*servers)
    assert set(counts.values()) == {1} and len(counts) == len(MANY), "what hung was answered by the other alone"
    assert [member.outstanding for member in engine._fleet.members] == [0, 0]
    assert engine.restarts == 0 and all(member.life == 0 for member in engine._fleet.members), (
        "it is not taken for dead"
    )
    hanging.released.set()
    again = engine.generate(REQUESTS, samples=1, generation=SAMPLED, seed=2)
    assert len(again) == len(REQUESTS)
    engine.close()


def test_who_answers_first_counts_and_the_other_is_ended(
    stand_ins: Maker, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything lags at once: requests are asked twice, and every answer comes once all the same."""
    monkeypatch.setattr(vllm_round, "LAGGING", 0.0)
    monkeypatch.setattr(vllm_round, "_LOOK_SECONDS", 0.01)
    expected = undisturbed(policy, stand_ins())
    servers = [stand_ins(), stand_ins(), stand_ins()]
    engine = listed(policy, *servers)
    for seed in (1, 1, 1):
        assert engine.generate(MANY, samples=2, generation=SAMPLED, seed=seed) == expected
    assert [member.outstanding for member in engine._fleet.members] == [0, 0, 0]
    engine.close()


def test_a_server_alone_is_not_asked_twice(stand_in: StandIn, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_round, "LAGGING", 0.0)
    monkeypatch.setattr(vllm_round, "_LOOK_SECONDS", 0.01)
    engine = listed(policy, stand_in)
    engine.generate(MANY, samples=2, generation=SAMPLED, seed=1)
    assert set(asked_by_seed(stand_in).values()) == {1}
    engine.close()


@pytest.mark.parametrize(("begun", "pause"), [(b"", 0.0), (b"", 0.2), (b'{"choices": [{"index"', 0.2)])
def test_what_is_ended_amid_its_answer_has_none(begun: bytes, pause: float) -> None:
    """Without a length, an answer is over when its connection is."""
    call = Call()
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        waiting = pool.submit(Http().post, address, "/v1/completions", {}, seconds=30.0, call=call)
        connection, _ = listening.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + begun)
            time.sleep(pause)  # until the head of the answer is read
            call.end()
            with pytest.raises(Ended):
                waiting.result(timeout=30.0)
