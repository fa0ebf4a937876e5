"""Where the responses of an RL step come from: sampled when the step asks, or ahead of it (posttrain.loops.rl_ahead).

Behind one small interface, so that the loop reads the same in every mode.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import END_OF_TEXT, TURN_END, render_prompt, special_id
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.loops.clock import Clock
from posttrain.loops.rl_state import Learner
from posttrain.records import Message, Problem, Rollout
from posttrain.rl.sampling import PromptSampler


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one prompt."""

    index: int
    """Of its problem."""
    rollouts: tuple[Rollout, ...]

    @property
    def oldest(self) -> int:
        """Version of the weights that sampled its oldest token."""
        return min(min(rollout.version_per_token) for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class Asker:
    """What does not change from call to call while prompts are answered."""

    tokenizer: PreTrainedTokenizerFast
    problems: Sequence[Problem]
    rollouts: RolloutEngine
    section: config.Rl

    def requests(self, drawn: Sequence[int]) -> list[Request]:
        """For the main thread alone: a fast tokenizer serves one at a time."""
        return [Request(self.problems[i].id, chat_prompt(self.tokenizer, self.problems[i])) for i in drawn]

    def stop_ids(self) -> list[int]:
        return [special_id(self.tokenizer, token) for token in (TURN_END, END_OF_TEXT)]

    def ask(
        self, drawn: Sequence[int], requests: Sequence[Request], seed: str, *, stop_ids: Sequence[int], tokens: int
    ) -> list[Group]:
        """A group of responses of at most `tokens` tokens to each of the problems `drawn`."""
        size = self.section.group_size
        sampled = self.rollouts.generate(
            requests,
            samples=size,
            generation=self.section.generation.model_copy(update={"max_new_tokens": tokens}),
            seed=random.Random(seed).getrandbits(31),
            stop_ids=stop_ids,
        )
        return [Group(index, tuple(sampled[p * size : (p + 1) * size])) for p, index in enumerate(drawn)]


def chat_prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> tuple[int, ...]:
    """The question as a chat turn that asks for thinking."""
    return tuple(render_prompt(tokenizer, [Message("user", problem.prompt)], "think"))


class Stream(Protocol):
    """The groups of every step; called by all ranks alike."""

    metrics: Mapping[str, float]
    """Of the groups given last."""

    def groups(self, step: int, number: int, clock: Clock) -> list[Group]:
        """The groups of a step, as many as it has prompts; `number` counts the rounds of a step that needs several."""
        ...

    def launch(self, step: int) -> None:
        """Before the update of `step`: what may be sampled meanwhile, with the weights as they are now."""
        ...

    def sync(self, version: int, *, look: bool) -> None:
        """The trainer's weights are now of `version`; with `look` the engine samples from them when this returns."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything sampled and not yet given."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """Ends what was begun, without waiting for it."""
        ...


class InTurn:
    """Sampling and training take turns: a batch is of the weights that it trains."""

    def __init__(self, asker: Asker, sampler: PromptSampler, learner: Learner, *, seed: int) -> None:
        self.metrics: Mapping[str, float] = {}
        self._asker, self._sampler, self._learner, self._seed = asker, sampler, learner, seed

    def groups(self, step: int, number: int, clock: Clock) -> list[Group]:
        section, asker = self._asker.section, self._asker
        drawn = self._sampler.draw(section.prompts_per_step, step=step)
        with clock("generate"):
            return asker.ask(
                drawn,
                asker.requests(drawn),
                f"{self._seed}:{step}:{number}",
                stop_ids=asker.stop_ids(),
                tokens=section.generation.max_new_tokens,
            )

    def launch(self, step: int) -> None:
        """Nothing is sampled during the update: the engine may give back its memory."""
        self._asker.rollouts.pause()

    def sync(self, version: int, *, look: bool) -> None:
        """The sampler proves that it uses the weights just trained, or stops the run."""
        self._asker.rollouts.resume()
        self._asker.rollouts.load_weights(self._learner.trainer.model, version)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass
