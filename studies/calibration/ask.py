"""One model asked: its sampled answers at each temperature, and how sure it is of each.

A temperature changes which answers are sampled. How sure the model is of an answer is always read at temperature 1,
from what it is; what is asked about an answer (P(True), a stated number) is asked once per question and answer.

Shapes: Q questions, K samples of a question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.chat.template import decode_ids
from posttrain.config import Generation
from posttrain.engine.packing import Response
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.evals.calibration import Forecast, split_half
from posttrain.evals.confidence_sources import (
    answer_span,
    number_prompt,
    p_true,
    stated_confidence,
    token_confidence,
    true_prompt,
    true_replies,
)
from posttrain.evals.forms import ChatForm, Form, PlainForm
from posttrain.loops.scoring import score
from posttrain.loops.verification import verify
from posttrain.records import Problem, Rollout
from studies.calibration.settings import Settings

SOURCES = ("token", "consistency", "verbalised", "p_true")
"""Of confidence: see posttrain.evals.confidence_sources."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is known of an answer to a question, however often it was sampled."""

    correct: bool | None
    """None: the verifier could not say."""
    p_true: float
    either: float
    """Probability of the replies `True` and `False` together."""
    stated: float | None
    """None: the reply held no number."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample that has an answer; what has none is wrong, and there is nothing to ask about."""

    text: str
    token: float
    """Confidence by the probability of its tokens."""
    opinion: Opinion


@dataclass(frozen=True, slots=True)
class Asker:
    """A model with what it takes to ask it."""

    policy: Policy
    rollouts: RolloutEngine
    settings: Settings
    base: bool
    """Whether it has no chat habits."""
    max_new_tokens: int
    micro_batch_tokens: int
    seed: int

    def answers(self, problems: Sequence[Problem]) -> dict[float, list[list[Answer | None]]]:
        """By temperature: K samples of each of Q questions, None without an answer; equal draws for every model."""
        form: Form = PlainForm(self.policy.tokenizer) if self.base else ChatForm(self.policy.tokenizer)
        drawn = {t: self._draw(problems, form, t) for t in self.settings.temperatures}
        texts = {
            t: [[form.read(p, r, "think").answer for r in group] for p, group in zip(problems, groups, strict=True)]
            for t, groups in drawn.items()
        }
        given = [(q, a) for rows in texts.values() for q, row in enumerate(rows) for a in row if a is not None]
        opinions = self._opinions(problems, list(dict.fromkeys(given)), form)
        return {t: self._join(drawn[t], texts[t], opinions) for t in drawn}

    def _draw(self, problems: Sequence[Problem], form: Form, temperature: float) -> list[list[Rollout]]:
        samples = self.settings.samples
        flat = self.rollouts.generate(
            [Request(problem.id, form.prompt(problem, "think")) for problem in problems],
            samples=samples,
            generation=Generation(temperature=temperature, max_new_tokens=self.max_new_tokens),
            seed=self.seed,
            stop_ids=form.stop_ids,
        )
        return [flat[start : start + samples] for start in range(0, len(flat), samples)]

    def _opinions(
        self, problems: Sequence[Problem], asked: Sequence[tuple[int, str]], form: Form
    ) -> dict[tuple[int, str], Opinion]:
        """By question and answer."""
        if not asked:
            return {}
        correct = [_flag(problems[q], answer) for q, answer in asked]
        believed = self._believed([(problems[q].prompt, answer) for q, answer in asked])
        stated = self._stated([(problems[q], answer) for q, answer in asked], form)
        rows = zip(asked, correct, believed, stated, strict=True)
        return {key: Opinion(flag, probability, either, number) for key, flag, (probability, either), number in rows}

    def _believed(self, asked: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
        """P(True) with the probability of either reply."""
        tokenizer, chat = self.policy.tokenizer, not self.base
        replies = true_replies(tokenizer, chat=chat)
        prompts = [true_prompt(tokenizer, question, answer, chat=chat) for question, answer in asked]
        sums = [sum(row) for row in self._logprobs([(prompt, reply) for prompt in prompts for reply in replies])]
        return [p_true(true, false) for true, false in zip(sums[::2], sums[1::2], strict=True)]

    def _stated(self, asked: Sequence[tuple[Problem, str]], form: Form) -> list[float | None]:
        """The confidence that the model states, greedily."""
        tokenizer, chat = self.policy.tokenizer, not self.base
        replies = self.rollouts.generate(
            [Request(p.id, number_prompt(tokenizer, p.prompt, answer, chat=chat)) for p, answer in asked],
            samples=1,
            generation=Generation(temperature=0.0, max_new_tokens=self.settings.reply_tokens),
            seed=self.seed,
            stop_ids=form.stop_ids,
        )
        return [stated_confidence(decode_ids(tokenizer, reply.response_ids)) for reply in replies]

    def _join(
        self,
        drawn: Sequence[Sequence[Rollout]],
        texts: Sequence[Sequence[str | None]],
        opinions: Mapping[tuple[int, str], Opinion],
    ) -> list[list[Answer | None]]:
        responses = []
        for rollouts, row in zip(drawn, texts, strict=True):
            for rollout, text in zip(rollouts, row, strict=True):
                if text is not None:
                    responses.append(self._up_to_answer(rollout, text))
        token = iter([token_confidence(row) for row in self._logprobs(responses)])
        return [
            [None if text is None else Answer(text, next(token), opinions[q, text]) for text in row]
            for q, row in enumerate(texts)
        ]

    def _up_to_answer(self, rollout: Rollout, text: str) -> Response:
        """The answer's tokens as a response to all that stands before them."""
        span = answer_span(self.policy.tokenizer, rollout.response_ids, text, last=not self.base)
        return rollout.prompt_ids + rollout.response_ids[: span.start], rollout.response_ids[span]

    def _logprobs(self, responses: Sequence[Response]) -> list[list[float]]:
        if not responses:
            return []
        scores = score(self.policy.model, responses, micro_batch_tokens=self.micro_batch_tokens, temperature=1.0)
        return [row.tolist() for row in scores]


READ: Mapping[str, Callable[[Answer], float | None]] = {
    "token": lambda answer: answer.token,
    "verbalised": lambda answer: answer.opinion.stated,
    "p_true": lambda answer: answer.opinion.p_true,
}
"""Confidence in one sample."""


def forecasts(
    answers_QK: Sequence[Sequence[Answer | None]], *, question_ids: Sequence[str], seed: int
) -> dict[str, list[Forecast]]:
    """By source; no answer is wrong with confidence 0, an unverified one gives no forecast.

    An answer without a stated confidence gives no verbalised forecast; where none is stated there are no such forecasts
    at all.
    """
    found = {source: _per_sample(answers_QK, read) for source, read in READ.items()}
    if not any(answer and answer.opinion.stated is not None for row in answers_QK for answer in row):
        found["verbalised"] = []
    found["consistency"] = split_half(
        [[None if answer is None else answer.text for answer in row] for row in answers_QK],
        [[_correct(answer) for answer in row] for row in answers_QK],
        question_ids=question_ids,
        seed=seed,
    )
    return {source: found[source] for source in SOURCES}


def _per_sample(
    answers_QK: Sequence[Sequence[Answer | None]], read: Callable[[Answer], float | None]
) -> list[Forecast]:
    found = []
    for q, row in enumerate(answers_QK):
        for answer in row:
            confidence, flag = 0.0 if answer is None else read(answer), _correct(answer)
            if confidence is not None and flag is not None:
                found.append(Forecast(q, confidence, flag))
    return found


def _correct(answer: Answer | None) -> bool | None:
    return False if answer is None else answer.opinion.correct


def _flag(problem: Problem, answer: str) -> bool | None:
    verdict = verify(problem, answer)
    return None if verdict.status == "unverified" else verdict.status == "correct"
