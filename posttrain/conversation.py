"""A conversation with a trained model, in either mode and with a thinking budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrain.chat.budget import build_budget_prompt, stop_tokens
from posttrain.chat.split import split_response
from posttrain.chat.template import decode_ids, render_prompt
from posttrain.config import Generation, load_params
from posttrain.engine.policy import Policy, load_policy
from posttrain.engine.rollout import Request, RolloutEngine, make_engine
from posttrain.records import Message, Mode
from posttrain.system import load_system


@dataclass
class Conversation:
    policy: Policy
    engine: RolloutEngine
    generation: Generation
    mode: Mode
    budget: int | None
    turns: list[Message] = field(default_factory=list)

    def ask(self, question: str) -> tuple[str | None, str]:
        """(thinking, answer) to the next turn; the flags /think and /no_think in it are obeyed."""
        self.turns.append(Message("user", question))
        prompt_ids = tuple(render_prompt(self.policy.tokenizer, self.turns, self.mode))
        response_ids = self._sample(prompt_ids)
        if self.budget is not None and self.mode == "think":
            tokens = stop_tokens(self.policy.tokenizer)
            cut = build_budget_prompt(prompt_ids, response_ids, budget=self.budget, tokens=tokens)
            if cut.forced_stop:
                response_ids = cut.prompt_ids[len(prompt_ids) :] + self._sample(cut.prompt_ids)
        parts = split_response(decode_ids(self.policy.tokenizer, response_ids), self.mode)
        self.turns.append(Message("assistant", parts.answer, parts.thinking))
        return parts.thinking, parts.answer

    def _sample(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        rollouts = self.engine.generate(
            [Request("chat", prompt_ids)], samples=1, generation=self.generation, seed=len(self.turns)
        )
        return rollouts[0].response_ids


def open_conversation(folder: Path, *, mode: Mode, budget: int | None, temperature: float) -> Conversation:
    """Load a model folder; raises ModelError when it is not one."""
    params = load_params()
    policy = load_policy(folder, precision=params.engine.precision)
    engine = make_engine(policy, params.engine, load_system())
    generation = Generation(temperature=temperature, max_new_tokens=params.evaluate.generation.max_new_tokens)
    return Conversation(policy, engine, generation, mode, budget)
