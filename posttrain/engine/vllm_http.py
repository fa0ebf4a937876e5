"""Requests to servers: JSON over HTTP, each with a deadline, and all in flight ended at once when a run stops.

Addresses are local or private, so a proxy of the environment must not see them: http.client knows none. A server that
is gone (Unreachable) is told apart from one that says no or is slow (StageError), because only the former is mended by
another server or a new one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import StageError

_HEALTH_SECONDS = 5.0
_DEATH_SECONDS = 3.0
"""How long after an internal error a server may still call itself healthy, though its engine has died."""


class Unreachable(StageError):
    """Nobody listens at the address, or the connection ended before the answer."""


class Ended(Exception):
    """A request that was ended because nobody waits for it any more."""


class Call:
    """A request that another thread may end."""

    def __init__(self) -> None:
        self.is_ended = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def begin(self, connected: socket.socket) -> None:
        with self._lock:
            if self.is_ended:
                raise ConnectionAbortedError("it was ended before it began")
            self._socket = connected

    def end(self) -> None:
        """Its server stops working on it, and who waits for it gets Ended; nothing happens when it has its answer."""
        with self._lock:
            self.is_ended = True
            if self._socket is not None:
                _shut(self._socket)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


class Http:
    def __init__(self) -> None:
        self.stopped = threading.Event()
        """While set, no request is made: the run ends."""
        # Not connections: those forget their socket when they see that an answer will be its last.
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def post(self, address: str, path: str, body: dict[str, Any], *, seconds: float, call: Call | None = None) -> Any:
        """The JSON answer; raises StageError with the server's own words, Unreachable when it is gone.

        `call`: through which another thread may end it; then Ended is raised.
        """
        url = f"{address}{path}"
        try:
            status, content = self._exchange(
                address, "POST", path, json.dumps(body).encode(), seconds=seconds, call=call
            )
        except TimeoutError as error:
            raise StageError(f"{url}: no answer; wanted: an answer within {seconds:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            if call is not None and call.is_ended:
                raise Ended(url) from error
            raise Unreachable(f"{url}: {error!r}; wanted: an answer within {seconds:.0f} s") from error
        if call is not None and call.is_ended:
            # An answer without a length that ends with its connection looks whole, wherever it was cut.
            raise Ended(url)
        if status < 400:
            return json.loads(content) if content else None
        message = f"{url}: {status}: {content.decode(errors='replace')[:500]}"
        if status >= 500 and self._dies(address):
            raise Unreachable(message)
        raise StageError(message)

    def is_healthy(self, address: str) -> bool:
        try:
            return self._exchange(address, "GET", "/health", None, seconds=_HEALTH_SECONDS)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        """End every request in flight, and begin no other; servers stop working on what nobody waits for."""
        with self._lock:
            self.stopped.set()
            for connected in self._open:
                _shut(connected)

    def _dies(self, address: str) -> bool:
        end = time.monotonic() + _DEATH_SECONDS
        while time.monotonic() < end:
            if not self.is_healthy(address):
                return True
            time.sleep(0.2)
        return False

    def _exchange(
        self, address: str, method: str, path: str, body: bytes | None, *, seconds: float, call: Call | None = None
    ) -> tuple[int, bytes]:
        parts = urlsplit(address)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        connection = kind(parts.netloc, timeout=seconds)
        connection.connect()
        connected: socket.socket = connection.sock
        try:
            if call is not None:
                call.begin(connected)
            with self._lock:
                if self.stopped.is_set():
                    raise ConnectionAbortedError("the run ends")
                self._open.add(connected)
            connection.request(method, f"{parts.path}{path}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            with self._lock:
                self._open.discard(connected)
            connection.close()
