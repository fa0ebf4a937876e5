"""Which servers there are, how much each has to do, and which of them answers the next request.

A request goes to the server with the fewest outstanding tokens. Dealing requests out in turn lets a server that got the
long prompts be the one everybody waits for. What a request returns depends on its own seed, not on who answers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.engine.vllm_broadcast import Channel
from posttrain.engine.vllm_http import Unreachable
from posttrain.engine.vllm_server import Server

_LOOK_SECONDS = 0.1
"""How often who waits for a server looks whether the run has ended."""


class Member:
    """A server among those that share the requests."""

    def __init__(self, address: str, server: Server | None = None) -> None:
        self.address = address
        self.server = server
        """Its process, if this stage started it."""
        self.outstanding = 0
        """Tokens of the requests it works on, prompts and the longest possible answers."""
        self.life = 0
        """How often it was found dead: a request that failed in an earlier life says nothing about this one."""
        self.is_known = False
        """Whether it was asked, in this life, what it serves."""
        self.channel: Channel | None = None
        """Over which it gets weights, in this life, unless by files."""
        self.is_ready = True
        """False while it is being brought back: whoever asked it then would get samples of random weights."""
        self.is_lost = False
        """Whether it is gone, and others do its work."""

    def last_words(self, *, lines: int | None = None) -> str:
        """What its process said last, or the end of it, each line on its own; nothing of a listed server."""
        words = self.server.last_words().split("\n") if self.server else []
        return "".join(f"\n{line}" for line in (words if lines is None else words[-lines:]))


@dataclass(frozen=True, slots=True)
class Lease:
    """One request's place on a server, as the server was when it was taken."""

    member: Member
    address: str
    life: int
    tokens: int

    def is_valid(self) -> bool:
        """Whether an answer is of the weights that were proven.

        A listed server has its old address when it returns with random weights; a process of this stage has a new one.
        """
        return self.member.server is not None or self.member.life == self.life


class Fleet:
    def __init__(self, members: Sequence[Member], stopped: threading.Event) -> None:
        """`stopped`: set when nobody shall wait for a server any more."""
        self.members = list(members)
        self._stopped = stopped
        self._changed = threading.Condition()

    def alive(self) -> list[Member]:
        return [member for member in self.members if not member.is_lost]

    def take(self, tokens: int) -> Lease:
        """The server with the fewest outstanding tokens, of equal ones the first, with `tokens` more now.

        Waits while the only ones left are being brought back; raises Unreachable when the run ends meanwhile.
        """
        with self._changed:
            while not (ready := [member for member in self.alive() if member.is_ready]):
                if self._stopped.is_set():
                    raise Unreachable("no vLLM server is ready, and the run ends")
                self._changed.wait(_LOOK_SECONDS)
            member = min(ready, key=lambda one: one.outstanding)
            member.outstanding += tokens
            return Lease(member, member.address, member.life, tokens)

    def take_idle(self, tokens: int, *, other_than: Member) -> Lease | None:
        """Another server that has nothing to do, if there is one."""
        with self._changed:
            for member in self.alive():
                if member.is_ready and not member.outstanding and member is not other_than:
                    member.outstanding += tokens
                    return Lease(member, member.address, member.life, tokens)
        return None

    def give_back(self, lease: Lease) -> None:
        with self._changed:
            lease.member.outstanding -= lease.tokens

    def dies(self, member: Member) -> None:
        """Nobody takes it from now on."""
        with self._changed:
            member.is_ready = member.is_known = False
            member.channel = None
            member.life += 1

    def returns(self, member: Member) -> None:
        """It has proven its weights."""
        with self._changed:
            member.is_ready, member.is_lost = True, False
            self._changed.notify_all()
