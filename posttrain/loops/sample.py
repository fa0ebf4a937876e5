"""Sample answers to problems and have them verified: what grading, fusion, preferences and distillation start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerFast

from posttrain.chat.split import Parts, answer_form, extract_answer, split_response
from posttrain.chat.template import decode_ids, render_prompt, special_id, with_flag
from posttrain.config import Engine, Generation
from posttrain.engine.distributed import share_out
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request, RolloutEngine, make_engine
from posttrain.loops.verification import verify_all
from posttrain.records import Message, Mode, Problem, Rollout, Verdict
from posttrain.rewards.language import is_mixed, main_script
from posttrain.system import System


@dataclass(frozen=True, slots=True)
class Sample:
    """One verified response."""

    problem: Problem
    mode: Mode
    rollout: Rollout
    text: str
    """Decoded response, special tokens included."""
    parts: Parts
    verdict: Verdict
    mixed: bool
    """Words in another script than the question's in the thinking (in the answer, where there is no thinking)."""

    @property
    def correct(self) -> bool:
        return self.verdict.status == "correct"

    @property
    def tokens(self) -> int:
        return len(self.rollout.response_ids)


def sample_problems(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    mode: Mode,
    samples: int,
    generation: Generation,
    seed: int,
) -> list[list[Sample]]:
    """`samples` verified responses per problem, in the order of the problems; the mode is asked for by its flag."""
    requests = [
        Request(
            problem.id, tuple(render_prompt(tokenizer, [Message("user", with_flag(problem.prompt, mode))], "think"))
        )
        for problem in problems
    ]
    stop_ids = (special_id(tokenizer, "<|im_end|>"), special_id(tokenizer, "<|endoftext|>"))
    rollouts = engine.generate(requests, samples=samples, generation=generation, seed=seed, stop_ids=stop_ids)
    asked = [problem for problem in problems for _ in range(samples)]
    flat = read_samples(tokenizer, [(problem, mode, r) for problem, r in zip(asked, rollouts, strict=True)])
    return [flat[start : start + samples] for start in range(0, len(flat), samples)]


def sample_policy(
    policy: Policy,
    problems: Sequence[Problem],
    *,
    mode: Mode,
    samples: int,
    generation: Generation,
    seed: int,
    engine: Engine,
    machine: System,
) -> list[list[Sample]]:
    """`sample_problems` with an engine of its own, for a stage that samples once."""
    rollouts = make_engine(policy, engine, machine)
    groups = sample_problems(
        rollouts, policy.tokenizer, problems, mode=mode, samples=samples, generation=generation, seed=seed
    )
    rollouts.close()
    return groups


def read_samples(
    tokenizer: PreTrainedTokenizerFast, responses: Sequence[tuple[Problem, Mode, Rollout]]
) -> list[Sample]:
    """Decode and split the responses, and have them verified; each rank its share."""
    return share_out(responses, partial(_read, tokenizer))


def _read(tokenizer: PreTrainedTokenizerFast, responses: Sequence[tuple[Problem, Mode, Rollout]]) -> list[Sample]:
    texts = [decode_ids(tokenizer, rollout.response_ids) for _, _, rollout in responses]
    forms = [answer_form(problem.verifier) for problem, _, _ in responses]
    answers = [
        (problem, extract_answer(text, require_think_closed=mode == "think", form=form))
        for (problem, mode, _), text, form in zip(responses, texts, forms, strict=True)
    ]
    samples = []
    for (problem, mode, rollout), text, form, verdict in zip(responses, texts, forms, verify_all(answers), strict=True):
        parts = split_response(text, mode, form)
        mixed = is_mixed(parts.thinking or parts.answer, target=main_script(problem.prompt))
        samples.append(Sample(problem, mode, rollout, text, parts, verdict, mixed))
    return samples
