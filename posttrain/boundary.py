"""Where the errors of a stage end: one message on stderr, an exit code, and a file that says why.

Exit codes: 0 done, 2 bad input, 130 and 143 interrupted, 1 anything else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from posttrain.config import ConfigError
from posttrain.errors import StageError, Terminated
from posttrain.files import write_atomic
from posttrain.records import DataError

WORK = Path(".work")
"""Unfinished work: locks, checkpoints, spools, outs on their way. Ignored by git and DVC."""


class RankEnded(SystemExit):
    """A rank above 0 has nothing more to do; what there was to say is in its Failure."""


@contextlib.contextmanager
def boundary(stage: str, path: Path) -> Iterator[None]:
    """Every error inside becomes one message without a traceback, where it is a known one, and in any case `path`."""
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if isinstance(error, RankEnded) or (isinstance(error, SystemExit) and not error.code):
            raise
        code, reason, message = explain(error)
        with contextlib.suppress(OSError):  # on a full disk the message on stderr has to do
            write_atomic(path, json.dumps({"stage": stage, "reason": reason, "message": message}) + "\n")
        if code is None:
            raise
        print(f"{stage}: {message}", file=sys.stderr, flush=True)
        raise SystemExit(code) from None


def explain(error: BaseException) -> tuple[int | None, str, str]:
    """(exit code, reason, message) of an error; the code is None for those that deserve a traceback."""
    if isinstance(error, Terminated):
        return 143, "terminated", "stopped by SIGTERM; the next run continues from the last checkpoint"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted", "interrupted; the next run continues from the last checkpoint"
    if isinstance(error, ConfigError | DataError):
        return 2, "bad input", str(error)
    if isinstance(error, StageError):
        return error.exit_code, type(error).__name__, str(error)
    full = next((cause for cause in _with_causes(error) if _is_full_disk(cause)), None)
    if full is not None:
        # Without a name it was something large: a checkpoint, or an out on its way.
        place = Path(getattr(full, "filename", None) or WORK)
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free / 2**20
        return 1, "disk full", f"no space left on the disk of {place} ({free:.0f} MiB free): make room and run again"
    return None, "crash", f"{type(error).__name__}: {error}"


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from, or while handling: torch tells of a full disk in that way alone."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Libraries wrap it (safetensors: "I/O error: No space left on device (os error 28)"), hence the text."""
    return "No space left on device" in str(error) or getattr(error, "errno", None) == errno.EDQUOT
