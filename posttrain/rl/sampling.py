"""Which prompts a step trains on: uniform, curriculum (easy to hard), or prioritised (what fails most).

Prompts of a step are drawn without replacement, in proportion to a weight that depends on the step and on the running
success counts (Kimi k1.5, arXiv 2501.12599, section 2.3.4). The state can be saved: a resumed run draws what the
uninterrupted one would have drawn.

Shape: P problems.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.errors import StageError


def uniform_weights(sampler: PromptSampler, step: int, count: int) -> list[float]:
    """Every prompt alike."""
    return [1.0] * len(sampler.pass_rates)


def curriculum_weights(sampler: PromptSampler, step: int, count: int) -> list[float]:
    """The easiest share of the prompts, which grows linearly until all are open at step `curriculum_steps`.

    At least one step's worth is open; prompts without a pass rate count as hardest.
    """
    total = len(sampler.pass_rates)
    share = (step + 1) / sampler.curriculum_steps if sampler.curriculum_steps else 1.0
    opened = min(total, max(count, math.ceil(share * total)))
    easiest = sorted(range(total), key=lambda i: (-(sampler.pass_rates[i] or 0.0), i))[:opened]
    weights = [0.0] * total
    for index in easiest:
        weights[index] = 1.0
    return weights


def prioritised_weights(sampler: PromptSampler, step: int, count: int) -> list[float]:
    """1 - running success rate, smoothed so that a prompt never seen counts as one half."""
    return priorities([smoothed(*counts) for counts in zip(sampler.solved, sampler.seen, strict=True)])


def smoothed(solved: float, seen: int) -> float:
    """(c + 1) / (n + 2)."""
    return (solved + 1.0) / (seen + 2.0)


def priorities(success_P: Sequence[float]) -> list[float]:
    """Probabilities in proportion to 1 - success; uniform when everything is solved."""
    failures = [1.0 - success for success in success_P]
    total = sum(failures)
    return [failure / total for failure in failures] if total > 0 else [1.0 / len(failures)] * len(failures)


WEIGHTS: Mapping[str, Callable[[PromptSampler, int, int], list[float]]]


class PromptSampler:
    """Draws prompt indices; deterministic for a seed and a history."""

    def __init__(self, kind: str, pass_rates: Sequence[float | None], *, curriculum_steps: int, seed: int) -> None:
        self.pass_rates = tuple(pass_rates)
        self.curriculum_steps = curriculum_steps
        self.solved = [0.0] * len(self.pass_rates)
        self.seen = [0] * len(self.pass_rates)
        self._weights = WEIGHTS[kind]
        self._random = random.Random(seed)

    def draw(self, count: int, *, step: int) -> list[int]:
        """Indices of `count` different prompts."""
        if count > len(self.pass_rates):
            raise StageError(
                f"prompts per step: got {count}, wanted at most the {len(self.pass_rates)} problems there are"
            )
        weights = self._weights(self, step, count)
        # Efraimidis and Spirakis (2006): the largest log(u)/w are a weighted sample without replacement.
        keys = [math.log(1.0 - self._random.random()) / w if w > 0 else -math.inf for w in weights]
        return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:count]

    def update(self, index: int, *, solved: float, seen: int) -> None:
        """Record how many of `seen` samples of a prompt were right."""
        self.solved[index] += solved
        self.seen[index] += seen

    def state_dict(self) -> dict[str, Any]:
        return {"solved": list(self.solved), "seen": list(self.seen), "random": self._random.getstate()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, internal, gauss = state["random"]
        self.solved, self.seen = list(state["solved"]), list(state["seen"])
        self._random.setstate((version, tuple(internal), gauss))


WEIGHTS = {"uniform": uniform_weights, "curriculum": curriculum_weights, "prioritised": prioritised_weights}
