"""The requests of one call of `generate`: each is answered once, whichever server does it.

A request that lags behind the others is put to a server that has nothing else to do as well (a hedged request: Dean and
Barroso, "The Tail at Scale", 2013). It has its own seed, so that both would give the same answer; the first counts, and
the other is ended. That costs only time in which a server would idle, and no server that hangs or is throttled holds
up the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from statistics import median

from posttrain.engine.vllm_fleet import Fleet, Lease, Member
from posttrain.engine.vllm_http import Call, Ended, Unreachable
from posttrain.records import Rollout

LAGGING = 3.0
"""Times the median of those that are answered: who waits longer may be asked of another server too."""
_LOOK_SECONDS = 0.2
"""How often is looked who lags."""

Ask = Callable[[str, int, Call], list[Rollout]]
"""(address, number of the request, how to end it early): the answer."""


@dataclass(slots=True)
class _Asked:
    """A request that has no answer yet."""

    member: Member
    since: float
    calls: list[Call] = field(default_factory=list)
    """One per server that works on it."""


class Round:
    def __init__(
        self,
        fleet: Fleet,
        pool: ThreadPoolExecutor,
        *,
        ask: Ask,
        tokens: Sequence[int],
        recover: Callable[[Member, int, Unreachable], None],
        say: Callable[[str], None],
    ) -> None:
        """`tokens`: of each request, what its server may have to hold at once."""
        self._fleet, self._pool, self._tokens = fleet, pool, tokens
        self._ask, self._recover, self._say = ask, recover, say
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._answers: dict[int, list[Rollout]] = {}
        self._seconds: list[float] = []
        self.futures: list[Future[None]] = []
        """Of all that was begun."""

    def run(self) -> list[Rollout]:
        """All answers, in the order of the requests; raises what the first request that failed raises."""
        pending = {self._submit(self._answer, index) for index in range(len(self._tokens))}
        while pending:
            done, pending = wait(pending, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            pending |= self._ask_again()
        return [rollout for index in range(len(self._tokens)) for rollout in self._answers[index]]

    def _submit(self, function: Callable[..., None], *arguments: object) -> Future[None]:
        self.futures.append(self._pool.submit(function, *arguments))
        return self.futures[-1]

    def _answer(self, index: int) -> None:
        """Ask until there is an answer, here or from another."""
        while index not in self._answers:
            self._try(index, self._fleet.take(self._tokens[index]))

    def _try(self, index: int, lease: Lease) -> None:
        """Put a request to one server; there may be no answer, because the server is gone or was overtaken."""
        try:
            self._put(index, lease)
        except Unreachable as error:
            self._recover(lease.member, lease.life, error)

    def _put(self, index: int, lease: Lease) -> None:
        """Put a request to one server, whose place is given back; who was overtaken leaves nothing."""
        call = Call()
        try:
            with self._lock:
                if index in self._answers:
                    return
                asked = self._asked.setdefault(index, _Asked(lease.member, time.monotonic()))
                asked.calls.append(call)
            rollouts = self._ask(lease.address, index, call)
            if not lease.is_valid():
                return
            with self._lock:
                if index in self._answers:
                    return
                self._answers[index] = rollouts
                self._seconds.append(time.monotonic() - asked.since)
                others = [other for other in asked.calls if other is not call]
                del self._asked[index]
            for other in others:
                other.end()
        except Ended:
            return
        finally:
            self._forget(index, call)
            self._fleet.give_back(lease)

    def _forget(self, index: int, call: Call) -> None:
        """One that nobody works on any more starts anew when it is asked again."""
        with self._lock:
            if (asked := self._asked.get(index)) and call in asked.calls:
                asked.calls.remove(call)
                if not asked.calls:
                    del self._asked[index]

    def _ask_again(self) -> set[Future[None]]:
        """The longest waiting of those that lag, each to a server of its own that is idle."""
        begun: set[Future[None]] = set()
        with self._lock:
            # Who has not been asked once comes first: while one waits for its turn, no server is idle for long.
            waiting = len(self._asked) + len(self._answers) < len(self._tokens)
            if waiting or len(self._seconds) * 2 < len(self._tokens):
                return begun
            typical, now = median(self._seconds), time.monotonic()
            lagging = [
                (now - asked.since, index, asked.member)
                for index, asked in self._asked.items()
                if len(asked.calls) == 1 and now - asked.since > max(_LOOK_SECONDS, LAGGING * typical)
            ]
        for age, index, member in sorted(lagging, key=lambda entry: entry[:2], reverse=True):
            lease = self._fleet.take_idle(self._tokens[index], other_than=member)
            if lease is None:
                break
            self._say(
                f"a request waits for {member.address} since {age:.1f} s, others took {typical:.1f} s; "
                f"{lease.address} is asked too"
            )
            begun.add(self._submit(self._try, index, lease))
        return begun
