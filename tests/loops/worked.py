"""A toy world with steps: a scripted policy that knows three ways to work one sum out, two of them wrong."""

import random
from collections.abc import Sequence

from posttrain import config
from posttrain.chat.template import TURN_END, encode_text, render_prompt
from posttrain.engine.policy import Policy, build_micro
from posttrain.engine.rollout import Request
from posttrain.loops.sample import Sample, sample_problems
from posttrain.records import Message, Problem, Rollout
from tests.chat.tokenizer import build_tokenizer
from tests.loops.toy import MICRO

TOKENIZER = build_tokenizer()
TOKENS = config.Generation(temperature=1.0, max_new_tokens=64)
PROBLEM = Problem("w", "4 - 1 + 5 =", "8", "exact", "d", "s", None, {"family": "chain_sum", "expression": "4 - 1 + 5"})
WAYS = {
    "right": ("Quickly: 4-1=3, then 3+5=8. So the answer is 8. That looks right.", 8),
    "late slip": ("Quickly: 4-1=3, then 3+5=9. So the answer is 9. That looks right.", 9),
    "early slip": ("Quickly: 4-1=2, then 2+5=7. So the answer is 7.", 7),
}
TEXTS = {name: f"<think>\n{working}\n</think>\n\n\\boxed{{{a}}}{TURN_END}" for name, (working, a) in WAYS.items()}
IDS = {name: tuple(encode_text(TOKENIZER, text)) for name, text in TEXTS.items()}


class Scripted:
    """A rollout engine that goes on along one of the ways that begin as asked, all equally likely."""

    version = 0

    def __init__(self) -> None:
        self.tokens = 0
        """Generated so far."""
        self._start = len(render_prompt(TOKENIZER, [Message("user", PROBLEM.prompt)], "think"))

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        rollouts = []
        for index, request in enumerate(requests):
            for sample in range(samples):
                begun = request.prompt_ids[self._start :]
                ways = [ids for ids in IDS.values() if ids[: len(begun)] == begun]
                rest = random.Random(f"{seed} {index} {sample}").choice(ways)[len(begun) :][: generation.max_new_tokens]
                stops = [place for place, token in enumerate(rest) if token in (stop_ids or ())]
                ids = rest[: stops[0] + 1] if stops else rest
                self.tokens += len(ids)
                zeros = (0.0,) * len(ids)
                finish = "stop" if stops else "length"
                rollouts.append(Rollout(request.problem_id, request.prompt_ids, ids, zeros, finish, (0,) * len(ids)))
        return rollouts

    def load_weights(self, model: object, version: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def micro_policy() -> Policy:
    """A model that knows nothing."""
    return Policy(build_micro(MICRO, vocab_size=len(TOKENIZER), eos_id=2, pad_id=0, seed=0), TOKENIZER)


def worked_samples(count: int = 12) -> list[Sample]:
    (group,) = sample_problems(Scripted(), TOKENIZER, [PROBLEM], mode="think", samples=count, generation=TOKENS, seed=1)
    return group
