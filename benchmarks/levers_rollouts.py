"""What the levers of sampling are worth: the same samples with each and without it, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.arithmetic import Shape
from benchmarks.lever import Lever, under
from benchmarks.world import Group
from posttrain import config
from posttrain.engine import prepack, rollout_transformers
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_transformers import TransformersEngine


class RolloutLevers:
    """As many samples of each prompt as its group has responses, as long as the longest of them."""

    def __init__(self, policy: Policy, shape: Shape, groups: Sequence[Group]) -> None:
        self._policy, self._shape = policy, shape
        self._prompts = [Request(str(i), group.prompt_ids) for i, group in enumerate(groups)]
        self._size = len(groups[0].responses)
        self._longest = max(len(response) for group in groups for response in group.responses)

    def named(self) -> Iterator[tuple[str, Callable[[], Lever]]]:
        yield "rollouts: a prompt read once for all its samples", self.one_prefill
        yield "rollouts: rows that ended leave the batch", self.ended_rows_leave
        if self._policy.model.dtype == torch.bfloat16:
            yield "rollouts: weights laid out once", self.laid_out
            yield "rollouts: own tokens attended to by multiples of 64", self.aligned

    def one_prefill(self) -> Lever:
        return Lever(
            "each sample a request of its own",
            self.sample,
            lambda: self._sample([prompt for prompt in self._prompts for _ in range(self._size)], 1, ()),
            None,
        )

    def ended_rows_leave(self) -> Lever:
        # Every thirtieth token ends a response: lengths are about geometric.
        stops = tuple(range(0, self._shape.vocabulary, 30))
        lengths = self._sample(self._prompts, self._size, stops)

        def on() -> None:
            self._sample(self._prompts, self._size, stops)

        off = under(rollout_transformers, "_LEAVE_SHARE", 2.0, on)
        return Lever("they stay until the last has ended", on, off, len(lengths) * max(lengths) / sum(lengths))

    def laid_out(self) -> Lever:
        off = under(prepack, "_FEWEST", float("inf"), self.sample)
        return Lever("anew for every product", self.sample, off, None)

    def aligned(self) -> Lever:
        off = under(rollout_transformers, "_ROOM", 1, self.sample)
        return Lever("exactly as many as there are", self.sample, off, None)

    def sample(self) -> None:
        """With every lever."""
        self._sample(self._prompts, self._size, ())

    def _sample(self, requests: Sequence[Request], samples: int, stops: Sequence[int]) -> list[int]:
        """Lengths of the responses."""
        engine = TransformersEngine(self._policy, batch=10**6, tolerance=1.0)
        generation = config.Generation(temperature=1.0, max_new_tokens=self._longest)
        rollouts = engine.generate(requests, samples=samples, generation=generation, seed=0, stop_ids=stops)
        return [len(rollout.response_ids) for rollout in rollouts]
