"""The best weights that a run's looks have seen, kept on disk beside its checkpoints, so that they survive a kill.

A look measures the policy on held-out problems while it trains. What is kept is the model alone: training never goes
on from it. The look before the first step counts too; its weights are those that the run starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.policy import Policy
from posttrain.errors import StageError

Looks = Mapping[str, Mapping[str, float]]
"""What was measured, by the number of steps before it, in their order."""


@dataclass(frozen=True, slots=True)
class BestWeights:
    """Keeps the weights of `policy` at the look where `signal` was highest."""

    policy: Policy
    signal: str
    """A measurement of the looks; higher is better."""
    folder: Path
    """Where the weights are kept, by every rank."""

    def see(self, looks: Looks) -> int:
        """Keep the weights as they are now if the last look is the best one; returns the best look's step.

        To be called after each look but the one before the first step, on all ranks.
        """
        best = best_step(looks, self.signal)
        if best == last_step(looks):
            weights = {name: tensor.detach().cpu() for name, tensor in self.policy.model.state_dict().items()}
            save_checkpoint(self.folder, best, {"model": weights})
        return best

    def restore(self, looks: Looks, start: PreTrainedModel) -> int:
        """Give the policy the weights of the best look, `start`'s if it is the first; returns its step.

        Raises StageError where they were not kept.
        """
        best = best_step(looks, self.signal)
        if best == 0:
            self.policy.model.load_state_dict(start.state_dict())
        elif best != last_step(looks):
            found = latest_checkpoint(self.folder)
            if found is None or found[0] != best:
                raise StageError(f"{self.folder}: got step {found and found[0]}, wanted the best weights, step {best}")
            self.policy.model.load_state_dict(found[1]["model"])
        return best


def best_step(looks: Looks, signal: str) -> int:
    """The first step at which the signal was highest."""
    return int(max(looks, key=lambda step: looks[step][signal]))


def last_step(looks: Looks) -> int:
    return int(list(looks)[-1])
