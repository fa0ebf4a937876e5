"""Sampling the evaluation of one model: both modes, thinking budgets and flags, through a rollout engine.

Give every model the same seed: same questions and same sampling seeds are what paired differences rest on. The budgets
cut thoughts that were sampled anyway (the first of each question); only the forced answers are sampled anew. Budget 0
is the empty think block, which is mode `no_think`, so its first sample is that point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.evals.forms import ChatForm, Form, PlainForm, Reading
from posttrain.evals.rows import BudgetSample, ModeSamples, QuestionRow
from posttrain.records import MODES, Mode, Problem, Rollout, Verdict

FLAG_TOKENS = 16
"""Tokens of a response that show whether its think block is empty."""

Verify = Callable[[Problem, str | None], Verdict]


class _Verifier:
    """Right, wrong or unknown (None), asked once per distinct answer of a problem."""

    def __init__(self, verify: Verify) -> None:
        self._verify = verify
        self._known: dict[tuple[str, str | None], bool | None] = {}

    def __call__(self, problem: Problem, answer: str | None) -> bool | None:
        key = (problem.id, answer)
        if key not in self._known:
            verdict = self._verify(problem, answer)
            self._known[key] = None if verdict.status == "unverified" else verdict.status == "correct"
        return self._known[key]


class _Sampler:
    """Draws from the engine, each draw of one evaluation with its own seed."""

    def __init__(
        self, engine: RolloutEngine, generation: config.Generation, *, stop_ids: tuple[int, ...], seed: int
    ) -> None:
        self._engine = engine
        self._generation = generation
        self._stop_ids = stop_ids
        self._seed = seed

    def __call__(
        self, prompts: Sequence[tuple[str, tuple[int, ...]]], *, samples: int, draw: int, at_most: int | None = None
    ) -> list[list[Rollout]]:
        """`samples` rollouts for each (problem id, prompt ids), of `at_most` tokens where that is less."""
        if not prompts:
            return []
        flat = self._engine.generate(
            [Request(problem_id, prompt_ids) for problem_id, prompt_ids in prompts],
            samples=samples,
            generation=self._generation if at_most is None else self._shorter(at_most),
            seed=(self._seed * 1009 + draw) % 2**31,
            stop_ids=self._stop_ids,
        )
        return [flat[i * samples : (i + 1) * samples] for i in range(len(prompts))]

    def _shorter(self, tokens: int) -> config.Generation:
        limit = min(tokens, self._generation.max_new_tokens)
        return self._generation.model_copy(update={"max_new_tokens": limit})


def evaluate_model(
    tokenizer: PreTrainedTokenizerFast,
    engine: RolloutEngine,
    problems: Sequence[Problem],
    section: config.Evaluate,
    *,
    seed: int,
    verify: Verify,
    base: bool,
    note: Callable[[str], None] = lambda text: None,
) -> list[QuestionRow]:
    """One row per problem, in order. `base`: a pre-trained model without chat habits; `note` hears of progress."""
    form: Form = PlainForm(tokenizer) if base else ChatForm(tokenizer)
    check = _Verifier(verify)
    sample = _Sampler(engine, section.generation, stop_ids=form.stop_ids, seed=seed)
    rollouts: dict[Mode, list[list[Rollout]]] = {}
    modes: dict[Mode, list[ModeSamples]] = {}
    for mode in MODES:
        rollouts[mode], modes[mode] = _sample_mode(mode, problems, section, form, check, sample)
        right = sum(flag is True for s in modes[mode] for flag in s.correct)
        note(f"{mode}: {right} of {len(problems) * section.samples} samples right")
    firsts = [group[0] for group in rollouts["think"]]
    budgets = [
        _at_budget(
            budget, problems, firsts, modes, form, check, sample, draw=10 + place, at_most=section.no_think_tokens
        )
        for place, budget in enumerate(section.budgets)
    ]
    follows = _follows(problems, form, sample)
    return [
        QuestionRow(
            id=problem.id,
            domain=problem.domain,
            prompt=problem.prompt,
            gold=problem.answer,
            think=modes["think"][q],
            no_think=modes["no_think"][q],
            follows=follows[q],
            budget=tuple(points[q] for points in budgets),
        )
        for q, problem in enumerate(problems)
    ]


def evaluate_thinking(
    tokenizer: PreTrainedTokenizerFast,
    engine: RolloutEngine,
    problems: Sequence[Problem],
    section: config.Evaluate,
    *,
    seed: int,
    verify: Verify,
) -> list[ModeSamples]:
    """Mode `think` alone of a model with chat habits, from the draws of `evaluate_model` under the same seed."""
    form = ChatForm(tokenizer)
    sample = _Sampler(engine, section.generation, stop_ids=form.stop_ids, seed=seed)
    return _sample_mode("think", problems, section, form, _Verifier(verify), sample)[1]


def _sample_mode(
    mode: Mode,
    problems: Sequence[Problem],
    section: config.Evaluate,
    form: Form,
    check: _Verifier,
    sample: _Sampler,
) -> tuple[list[list[Rollout]], list[ModeSamples]]:
    """The rollouts of each problem in one mode, and what they say."""
    prompts = [(problem.id, form.prompt(problem, mode)) for problem in problems]
    at_most = section.no_think_tokens if mode == "no_think" else None
    rollouts = sample(prompts, samples=section.samples, draw=MODES.index(mode), at_most=at_most)
    return rollouts, [_mode_samples(p, r, mode, form, check) for p, r in zip(problems, rollouts, strict=True)]


def _mode_samples(
    problem: Problem, rollouts: Sequence[Rollout], mode: Mode, form: Form, check: _Verifier
) -> ModeSamples:
    readings: list[Reading] = [form.read(problem, rollout, mode) for rollout in rollouts]
    return ModeSamples(
        answers=tuple(r.answer for r in readings),
        correct=tuple(check(problem, r.answer) for r in readings),
        tokens=tuple(len(rollout.response_ids) for rollout in rollouts),
        thinking_tokens=tuple(r.thinking_tokens for r in readings),
        finish=tuple(rollout.finish for rollout in rollouts),
        well_formed=tuple(r.well_formed for r in readings),
        mixed=tuple(r.mixed for r in readings),
        text=readings[0].text,
    )


def _at_budget(
    budget: int,
    problems: Sequence[Problem],
    firsts: Sequence[Rollout],
    modes: dict[Mode, list[ModeSamples]],
    form: Form,
    check: _Verifier,
    sample: _Sampler,
    *,
    draw: int,
    at_most: int,
) -> list[BudgetSample]:
    """The first thought of every question at one budget; an answer that is forced has the room of a direct one."""
    if budget == 0:
        return [BudgetSample(0, samples.correct[0], True) for samples in modes["no_think"]]
    stops = [form.stop(rollout, budget) for rollout in firsts]
    forced = [q for q, stop in enumerate(stops) if stop.forced]
    answers = sample([(problems[q].id, stops[q].prompt_ids) for q in forced], samples=1, draw=draw, at_most=at_most)
    correct = [samples.correct[0] for samples in modes["think"]]
    for q, group in zip(forced, answers, strict=True):
        correct[q] = check(problems[q], form.read_forced(problems[q], group[0]))
    return [BudgetSample(budget, flag, stop.forced) for flag, stop in zip(correct, stops, strict=True)]


def _follows(problems: Sequence[Problem], form: Form, sample: _Sampler) -> list[tuple[bool, ...]]:
    """Whether each mode's flag was obeyed; every second question has a contrary flag before it: the last one wins."""
    columns: list[list[bool]] = []
    for draw, mode in enumerate(MODES, start=2):
        asked = [form.flagged(problem, mode, contrary=q % 2 == 1) for q, problem in enumerate(problems)]
        prompts = [(problem.id, ids) for problem, ids in zip(problems, asked, strict=True) if ids is not None]
        if not prompts:
            return [() for _ in problems]
        groups = sample(prompts, samples=1, draw=draw, at_most=FLAG_TOKENS)
        columns.append([form.follows(group[0], mode) for group in groups])
    return [tuple(flags) for flags in zip(*columns, strict=True)]
