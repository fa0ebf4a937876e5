"""Labels of steps without a labeller: go on from the end of each step, several times, and see how often it ends right.

The share of right completions is the value of the prefix under the policy that completes, not the correctness of the
step: a wrong step that the policy would mend has a high value, and the first step of a hard problem a low one
(Qwen's PRM lessons, arXiv 2501.07301). Hence two kinds of label: `soft`, that share, and `hard`, whether any completion
was right. Nothing is sampled behind the last step, whose value is the response's own verdict.

Source: Wang et al., arXiv 2312.08935, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import END_OF_TEXT, TURN_END, special_id
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.loops.sample import Sample, read_samples
from posttrain.records import Rollout
from posttrain.rewards.steps import split_steps


@dataclass(frozen=True, slots=True)
class StepCount:
    """How completions from the end of a step came out."""

    end: int
    """Index among the response tokens of the step's last one."""
    right: int
    tried: int
    """Completions with a verdict: one that could not be verified says nothing."""


def count_completions(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    samples: Sequence[Sample],
    *,
    completions: int,
    generation: config.Generation,
    seed: int,
) -> list[list[StepCount]]:
    """Per sample, every step and how `completions` ways to go on from it came out; left out where none has a verdict.

    A completion is cut where the whole response reaches `generation.max_new_tokens`, as sampling it would have been.
    """
    ends = [[step.end for step in split_steps(tokenizer, sample.rollout.response_ids)] for sample in samples]
    places = [(index, end) for index, steps in enumerate(ends) for end in steps[:-1]]
    rollouts = engine.generate(
        [
            Request(s.problem.id, s.rollout.prompt_ids + s.rollout.response_ids[: end + 1])
            for s, end in ((samples[index], end) for index, end in places)
        ],
        samples=completions,
        generation=generation,
        seed=seed,
        stop_ids=[special_id(tokenizer, token) for token in (TURN_END, END_OF_TEXT)],
    )
    counts: list[list[StepCount]] = [[] for _ in samples]
    for number, (index, end) in enumerate(places):
        group = rollouts[number * completions : (number + 1) * completions]
        first, limit = samples[index], generation.max_new_tokens
        joined = [join(first.rollout, end + 1, further, limit=limit) for further in group]
        whole = read_samples(tokenizer, [(first.problem, first.mode, rollout) for rollout in joined])
        counts[index].append(_count(end, whole))
    for index, steps in enumerate(ends):
        counts[index].append(_count(steps[-1], [samples[index]]))
    return [[count for count in row if count.tried] for row in counts]


def join(first: Rollout, kept: int, further: Rollout, *, limit: int) -> Rollout:
    """One response: `kept` tokens of the first and then the further ones, at most `limit` in all."""
    length = kept + len(further.response_ids)
    return Rollout(
        first.problem_id,
        first.prompt_ids,
        (first.response_ids[:kept] + further.response_ids)[:limit],
        (first.logprobs[:kept] + further.logprobs)[:limit],
        further.finish if length <= limit else "length",
        (first.version_per_token[:kept] + further.version_per_token)[:limit],
    )


def _count(end: int, samples: Sequence[Sample]) -> StepCount:
    seen = [sample for sample in samples if sample.verdict.status != "unverified"]
    return StepCount(end, sum(sample.correct for sample in seen), len(seen))


def soft_label(count: StepCount) -> float:
    """Share of right completions: the value of the prefix."""
    return count.right / count.tried


def hard_label(count: StepCount) -> float:
    """Whether any completion was right."""
    return float(count.right > 0)


LABELS: Mapping[str, Callable[[StepCount], float]] = {"soft": soft_label, "hard": hard_label}
