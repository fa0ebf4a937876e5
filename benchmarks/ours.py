"""Every case by this project: through the loops that its stages run, with nothing but a clock added."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from benchmarks.settings import Case, Precision
from benchmarks.turns import Turns
from benchmarks.world import Work, engine_of, even_share
from posttrain import config
from posttrain.config import parse_params
from posttrain.engine.policy import Policy, load_policy
from posttrain.engine.rollout import Request, RolloutEngine, make_engine
from posttrain.loops.clock import Clock
from posttrain.loops.preference import run_preference
from posttrain.loops.recipe import choose_recipe
from posttrain.loops.reward_model import run_reward_model
from posttrain.loops.rl import run_rl, update, weights_at
from posttrain.loops.rl_ahead import make_stream
from posttrain.loops.rl_batch import Collector
from posttrain.loops.rl_evidence import Evidence
from posttrain.loops.rl_state import Learner
from posttrain.loops.rl_stream import Asker
from posttrain.loops.scoring import score
from posttrain.loops.sft import run_sft
from posttrain.records import Problem, Rollout
from posttrain.rewards.terms import Group
from posttrain.rewards.total import LEARNED, make_terms
from posttrain.rl.sampling import PromptSampler
from posttrain.system import System

NEVER = 10**9
"""Steps between checkpoints."""


def sft(work: Work, turns: Turns) -> None:
    examples = [
        ([*group.prompt_ids, *response], [0] * len(group.prompt_ids) + [1] * len(response))
        for group in work.groups
        for response in group.responses
    ]
    policy = _policy(work)
    turns.begin()
    run_sft(
        policy,
        examples,
        optimizer=work.optimizer,
        epochs=float(work.steps),
        batch_tokens=sum(len(ids) for ids, _ in examples),
        sequence_length=work.sequence_length,
        engine=_engine(work),
        seed=work.seed,
        log=_log(turns),
        checkpoints=work.scratch,
        save_every=NEVER,
    )


def dpo_cached(work: Work, turns: Turns) -> None:
    """The reference's log-probabilities are computed before the first step, and not timed."""
    _dpo(work, turns, lambda policy: None)


def dpo(work: Work, turns: Turns) -> None:
    """With the reference pass: each step's pairs are scored once more, though the loss keeps the first scores.

    In a run every pair is scored once, before the first step, so this is what a step costs with its share of that.
    """
    responses = [(group.prompt_ids, response) for group in work.groups for response in group.responses]

    def score_again(policy: Policy) -> None:
        score(policy.model, responses, micro_batch_tokens=work.params.engine.micro_batch_tokens, temperature=1.0)

    _dpo(work, turns, score_again)


def _dpo(work: Work, turns: Turns, between: Callable[[Policy], None]) -> None:
    policy, log = _policy(work), _log(turns)

    def log_and_continue(metrics: dict[str, float], step: int) -> None:
        log(metrics, step)
        between(policy)

    section = work.params.align.model_copy(
        update={
            "optimizer": work.optimizer,
            "epochs": float(work.steps),
            "batch_pairs": len(work.groups),
            "method": work.preference,
        }
    )
    turns.begin()
    run_preference(
        policy,
        work.pairs(),
        section=section,
        engine=_engine(work),
        seed=work.seed,
        log=log_and_continue,
        note=_unseen,
        checkpoints=work.scratch,
        save_every=NEVER,
        source="benchmark",
    )


def reward_model(work: Work, turns: Turns) -> None:
    policy = _policy(work)
    section = work.params.reward_model.model_copy(
        update={"optimizer": work.optimizer, "epochs": float(work.steps), "batch_pairs": len(work.groups)}
    )
    turns.begin()
    run_reward_model(
        policy,
        work.pairs(),
        section=section,
        engine=_engine(work),
        seed=work.seed,
        log=_log(turns),
        checkpoints=work.scratch,
        save_every=NEVER,
    )


def grpo_update(work: Work, turns: Turns) -> None:
    """The optimizer step alone, on given responses with their advantages."""
    policy = _policy(work)
    # Given responses are nobody's samples: what their log-probabilities differ by says nothing.
    section = rl_section(work).model_copy(update={"mismatch_budget": math.inf})
    learner = Learner(
        policy,
        choose_recipe(section.objective, group_size=section.group_size),
        section,
        engine=_engine(work),
        seed=work.seed,
    )
    problems = _problems(work)
    sampler = PromptSampler("uniform", [None] * len(problems), curriculum_steps=0, seed=work.seed)
    terms = make_terms(section.rewards, scorers={LEARNED: even_shares})
    asker = Asker(policy.tokenizer, problems, Injected(work), section)
    stream = make_stream(asker, sampler, learner, work.seed)
    collector = Collector(policy.tokenizer, learner, None, problems, sampler, stream, section, terms)
    batch = collector.collect(0, weights_at(0, section), Clock())
    evidence, log = Evidence(work.scratch, policy.tokenizer), _log(turns)
    turns.begin()
    for step in range(work.steps):
        log(update(learner, batch, section, evidence, step=step, seed=work.seed), step)


def generate(work: Work, turns: Turns) -> None:
    """First one greedy response to each prompt, for comparison; then rounds of sampling, to the full length."""
    policy = _policy(work)
    rollouts = make_engine(policy, _engine(work), System())
    requests = [Request(str(p), group.prompt_ids) for p, group in enumerate(work.groups)]
    longest = work.size.response_tokens
    turns.begin()
    greedy = config.Generation(temperature=0.0, max_new_tokens=longest)
    best = rollouts.generate(requests, samples=1, generation=greedy, seed=work.seed, stop_ids=())
    turns.done([token for rollout in best for token in rollout.response_ids])
    sampled = config.Generation(temperature=1.0, max_new_tokens=longest)
    for step in range(work.steps):
        rollouts.generate(requests, samples=work.size.group, generation=sampled, seed=step, stop_ids=())
        turns.done([])


def grpo(work: Work, turns: Turns) -> None:
    policy = _policy(work)
    rollouts = FullLength(make_engine(policy, _engine(work), System()), work)
    turns.begin()
    run_rl(
        policy,
        _problems(work),
        section=rl_section(work),
        rollouts=rollouts,
        engine=_engine(work),
        seed=work.seed,
        log=_log(turns),
        checkpoints=work.scratch,
        measure=dict,
        measure_at=(),
        scorers={LEARNED: even_shares},
    )


RUNS: Mapping[Case, Callable[[Work, Turns], None]] = {
    "sft": sft,
    "dpo": dpo,
    "dpo_cached": dpo_cached,
    "reward_model": reward_model,
    "grpo_update": grpo_update,
    "generate": generate,
    "grpo": grpo,
}


class FullLength:
    """An engine's responses to the benchmark's prompts, none of which may end early: both sides do the same work."""

    def __init__(self, engine: RolloutEngine, work: Work) -> None:
        self._engine, self._groups = engine, work.groups
        self.version = engine.version

    def generate(self, requests: Sequence[Request], *, stop_ids: Any = None, **options: Any) -> list[Rollout]:
        asked = [Request(r.problem_id, self._groups[int(r.problem_id)].prompt_ids) for r in requests]
        return self._engine.generate(asked, stop_ids=(), **options)

    def load_weights(self, model: Any, version: int) -> None:
        self._engine.load_weights(model, version)
        self.version = version

    @property
    def restarts(self) -> int:
        return self._engine.restarts

    def pause(self) -> None:
        self._engine.pause()

    def resume(self) -> None:
        self._engine.resume()

    def close(self) -> None:
        self._engine.close()


class Injected:
    """An engine that answers with given responses."""

    version = 0
    restarts = 0

    def __init__(self, work: Work) -> None:
        self._groups = work.groups

    def generate(self, requests: Sequence[Request], **options: Any) -> list[Rollout]:
        return [
            Rollout(r.problem_id, group.prompt_ids, ids, (-1.0,) * len(ids), "stop", (0,) * len(ids))
            for r, group in ((r, self._groups[int(r.problem_id)]) for r in requests)
            for ids in group.responses
        ]

    def load_weights(self, model: Any, version: int) -> None:
        raise NotImplementedError("given responses come from no weights")

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass


def even_shares(groups: Sequence[Group]) -> list[list[float]]:
    """The reward of every sample."""
    return [[even_share(sample.response_ids) for sample in group.samples] for group in groups]


def rl_section(work: Work) -> config.Rl:
    """The profile's section with the benchmark's numbers; one optimizer step per batch, one reward term."""
    values = work.params.model_dump(mode="json")
    values["grpo"] |= {
        "rewards": {LEARNED: {"weight": 1.0, "start": 0, "ramp": 0}},
        "sampling": "uniform",
        "prompts_per_step": work.size.prompts,
        "group_size": work.size.group,
        "steps": work.steps,
        "epochs": 1,
        "minibatches": 1,
        "generation": {"temperature": 1.0, "max_new_tokens": work.size.response_tokens},
        "optimizer": work.optimizer.model_dump(mode="json"),
        "save_every": NEVER,
    }
    return parse_params(values, "benchmark").grpo


def _policy(work: Work) -> Policy:
    return load_policy(work.folder, precision=cast(Precision, work.precision))


def _engine(work: Work) -> config.Engine:
    return engine_of(work.params, cast(Precision, work.precision))


def _problems(work: Work) -> list[Problem]:
    return [Problem(str(p), "?", "0", "exact", "benchmark", "benchmark") for p in range(len(work.groups))]


def _unseen(text: str) -> None:
    """Warnings about what a run teaches: random tokens teach nothing."""


def _log(turns: Turns) -> Callable[[dict[str, float], int], None]:
    def log(metrics: dict[str, float], step: int) -> None:
        parts = {name.removeprefix("time/"): value for name, value in metrics.items() if name.startswith("time/")}
        turns.done([metrics["train/loss"], metrics["train/grad_norm"]], parts)

    return log
