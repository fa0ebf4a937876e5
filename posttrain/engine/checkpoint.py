"""Checkpoints of unfinished stages: written so that a half-written one is never taken for a whole one.

Each rank writes its part into a temporary folder and syncs it; the folder is renamed; a COMMITTED file with the hash of
every part makes it valid. A folder without it, with a part missing or with other content, is passed over. The last
two are kept. All ranks see the same folder (one machine, or a shared file system).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from posttrain.engine.distributed import from_first_rank, gather_objects, rank, wait_for_all, world_size

_MARK = "COMMITTED"
_KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write this rank's `state` (tensors, numbers, text, lists, tuples, dicts) as checkpoint `step` of `folder`.

    Where that fails, as on a full disk, the earlier ones stay as they were and nothing of this one takes up space.
    """
    temporary, final = folder / f".writing-{step:08d}", folder / f"step-{step:08d}"
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        temporary.mkdir(parents=True)
    wait_for_all()
    name = f"state-{rank()}.pt"
    try:
        with (temporary / name).open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    hashes = dict(gather_objects((name, _hash(temporary / name))))
    if rank() == 0:
        _sync_folder(temporary)
        temporary.rename(final)
        _sync_folder(folder)
        _write_mark(final, {"step": step, "sha256": hashes})
        _remove_others(folder, step)
    wait_for_all()


def latest_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, this rank's state) of the newest checkpoint that is whole on every rank; None without one.

    One that is passed over is named on standard error, with the reason.
    """
    for step in reversed(from_first_rank(lambda: _steps(folder))):
        fault = next(filter(None, gather_objects(_fault(folder / f"step-{step:08d}"))), None)
        if fault is None:
            newest = step
            break
        if rank() == 0:
            print(f"{folder / f'step-{step:08d}'}: passed over: {fault}", file=sys.stderr, flush=True)
    else:
        return None
    path = folder / f"step-{newest:08d}" / f"state-{rank()}.pt"
    # weights_only: the file can hold data and nothing that runs.
    return newest, torch.load(path, map_location="cpu", weights_only=True)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def _fault(checkpoint: Path) -> str | None:
    """Why this rank cannot go on from it; None where the mark is there and names its part as it is."""
    name = f"state-{rank()}.pt"
    try:
        hashes = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))["sha256"]
        if len(hashes) != world_size():
            return f"written by {len(hashes)} processes, this run has {world_size()}"
        return None if hashes[name] == _hash(checkpoint / name) else f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError) as error:
        return f"{_MARK} cannot be read: {error!r}"


def _hash(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_mark(checkpoint: Path, content: dict[str, Any]) -> None:
    with (checkpoint / _MARK).open("w", encoding="utf-8") as out:
        json.dump(content, out)
        out.flush()
        os.fsync(out.fileno())
    _sync_folder(checkpoint)


def _remove_others(folder: Path, step: int) -> None:
    """Keep the newest two up to `step`; what was abandoned while writing goes too.

    Later ones are damaged or of a run that was cut off and has been here again since: they must not pass for newer.
    """
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path)
    kept = [other for other in _steps(folder) if other <= step][-_KEPT:]
    for other in _steps(folder):
        if other not in kept:
            shutil.rmtree(folder / f"step-{other:08d}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
