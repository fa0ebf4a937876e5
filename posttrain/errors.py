"""The errors that end a stage with one clear message, by boundary.

ConfigError (posttrain.config) and DataError (posttrain.records) stand beside what they check; the rest is here.
posttrain.job turns each of them into a message on stderr, an exit code and `.work/exit/<stage>.json`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import ClassVar


class StageError(Exception):
    """The stage cannot go on; the message is for a person and needs no traceback."""

    exit_code: ClassVar[int] = 1


class ModelError(StageError):
    """A model folder that is not one, or not the one wanted: names the folder, what is missing and what was wanted."""

    exit_code: ClassVar[int] = 2


class NonFiniteError(StageError):
    """A loss or gradient norm that is not a number, raised before the optimizer sees it."""


class MismatchError(StageError):
    """Sampler and trainer are further apart than allowed, raised before the optimizer steps."""


class VerifierError(StageError):
    """Too many samples could not be verified, so that their rewards would mean nothing."""


class StageLockedError(StageError):
    """Another process runs this stage now."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread, so that it takes the path of Ctrl-C."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated; at Python's default it would end the process without unwinding it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
