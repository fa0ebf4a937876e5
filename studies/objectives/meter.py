"""What an arm costs: seconds, responses and tokens of its training, looks at the held-out problems left out.

Kept step by step beside the checkpoints, so that an interrupted arm does not start counting at nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.files import append_row, journal_rows
from posttrain.records import Rollout


class Meter:
    """A rollout engine that counts what another samples."""

    def __init__(self, engine: RolloutEngine, *, heldout: Collection[str], journal: Path) -> None:
        """`heldout`: ids of problems whose samples do not count."""
        self.version = engine.version
        self._engine = engine
        self._heldout = frozenset(heldout)
        self._journal = journal
        self._responses = self._tokens = 0
        self._seconds = 0.0

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        start = time.perf_counter()
        rollouts = self._engine.generate(requests, samples=samples, generation=generation, seed=seed, stop_ids=stop_ids)
        counted = [rollout for rollout in rollouts if rollout.problem_id not in self._heldout]
        self._seconds += time.perf_counter() - start if counted else 0.0
        self._responses += len(counted)
        self._tokens += sum(len(rollout.response_ids) for rollout in counted)
        return rollouts

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        self._engine.load_weights(model, version)
        self.version = self._engine.version

    @property
    def restarts(self) -> int:
        return self._engine.restarts

    def pause(self) -> None:
        self._engine.pause()

    def resume(self) -> None:
        self._engine.resume()

    def close(self) -> None:
        self._engine.close()

    def step(self, metrics: Mapping[str, float], step: int) -> None:
        """Note what was sampled since the last step, and the seconds of the step.

        A step that samples has that in its own `time/step`. What was sampled before the steps (rft) is a step 0: an
        interrupted arm samples it again.
        """
        sampled = {"responses": self._responses, "tokens": self._tokens}
        if "time/generate" in metrics:
            append_row(self._journal, {"step": step, "seconds": metrics["time/step"], **sampled})
        else:
            if self._responses:
                append_row(self._journal, {"step": 0, "seconds": self._seconds, **sampled})
            append_row(self._journal, {"step": step, "seconds": metrics["time/step"], "responses": 0, "tokens": 0})
        self._responses = self._tokens = 0
        self._seconds = 0.0

    def total(self) -> dict[str, float]:
        """Sums over all steps; a step that was done twice counts once."""
        rows = journal_rows(self._journal)
        return {key: sum(row[key] for row in rows) for key in ("seconds", "responses", "tokens")}
