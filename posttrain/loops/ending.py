"""How a training loop ends: after all its planned steps, or with an error; never early and in silence.

A loop that finds a checkpoint at its last step trains nothing, and one that leaves too soon trains too little; both
would be recorded as results.
"""

from __future__ import annotations

from posttrain.errors import StageError


def refuse_other_end(done: int, planned: int) -> None:
    """Raises StageError unless `done` steps are all that were planned."""
    if done != planned:
        raise StageError(f"training ended after step {done}; wanted: all {planned} planned steps")
