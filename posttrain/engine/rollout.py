"""What a sampler of responses does, whichever engine is behind it.

Token ids go in and come out; the log-probabilities of the sampled tokens come with them, because the trainer's own may
differ in rounding and a correction needs both. After every weight sync the engine proves that it samples from the
weights it was given (posttrain.engine.canary), or raises. All ranks call it alike, and all get all responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.distributed import from_first_rank, rank
from posttrain.engine.policy import Policy
from posttrain.records import Rollout
from posttrain.system import System


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to be answered `samples` times."""

    problem_id: str
    prompt_ids: tuple[int, ...]


class RolloutEngine(Protocol):
    version: int
    """Of the weights in use; every sampled token carries it."""

    @property
    def restarts(self) -> int:
        """How often servers had to be brought back so far; where there are none: 0."""
        return 0

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """`samples` responses per request, request-major. Temperature 0 is greedy, with log-probabilities at 1.

        A response ends with the first of `stop_ids` (default: the tokenizer's end token), which it includes.
        """
        ...

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        """Sample from the weights of `model` from now on; raises StageError when the canary disagrees."""
        ...

    def pause(self) -> None:
        """Leave the memory to the trainer, where system.yaml says so; nothing is sampled until the next load_weights.

        An engine in process has nothing to give back: its weights are the trainer's own.
        """
        return

    def resume(self) -> None:
        """Take the memory back, for weights that must follow at once."""
        return

    def close(self) -> None:
        """Give back everything: no process, file or memory stays."""
        ...


class FirstRankEngine:
    """RolloutEngine whose servers the first rank has and speaks to."""

    def __init__(self, make: Callable[[], RolloutEngine]) -> None:
        self.version = 0
        self._engine = make() if rank() == 0 else None

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        def answer() -> list[Rollout]:
            assert self._engine is not None
            return self._engine.generate(requests, samples=samples, generation=generation, seed=seed, stop_ids=stop_ids)

        return from_first_rank(answer)

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        if self._engine is not None:
            self._engine.load_weights(model, version)
        self.version = version

    @property
    def restarts(self) -> int:
        return 0 if self._engine is None else self._engine.restarts

    def pause(self) -> None:
        if self._engine is not None:
            self._engine.pause()

    def resume(self) -> None:
        if self._engine is not None:
            self._engine.resume()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def make_engine(policy: Policy, engine: config.Engine, system: System) -> RolloutEngine:
    """The engine of params.yaml, sampling from `policy`'s weights as version 0."""
    # Imported here: a stage that samples in process should not pay for the client of the servers.
    if engine.rollout == "vllm":
        from posttrain.engine.rollout_vllm import VllmEngine

        return FirstRankEngine(lambda: VllmEngine(policy, engine=engine, system=system))
    from posttrain.engine.rollout_transformers import TransformersEngine

    return TransformersEngine(policy, batch=engine.rollout_batch, tolerance=engine.canary_tolerance)
