"""Reward terms: pure functions of the samples of one prompt, each giving one number per sample.

The total reward is their weighted sum; weights and schedules are the caller's. Every term is evaluated whatever its
weight, so that its mean can be watched before it starts to count.

Shape: G samples of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from posttrain.chat.split import Parts
from posttrain.errors import StageError
from posttrain.records import Finish, Mode, Problem, Verdict
from posttrain.rewards.language import consistency, main_script

OVERLONG_SHARE = 0.2
"""Last part of the token limit over which the overlong penalty grows (DAPO: 4096 of 20480)."""

REPEAT_NGRAM = 20
"""Tokens of a run that counts as a repetition when it occurs again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a reward may look at."""

    verdict: Verdict
    parts: Parts
    response_ids: tuple[int, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt."""

    problem: Problem
    mode: Mode
    max_tokens: int
    """Limit under which the responses were sampled."""
    samples: tuple[Sample, ...]


def accuracy(group: Group) -> list[float]:
    """The verifier's score."""
    return [sample.verdict.score for sample in group.samples]


def format_reward(group: Group) -> list[float]:
    """1 for a response in the form of its mode that ended its turn, else 0 (DeepSeek-R1, section 2.2.2)."""
    return [float(sample.parts.well_formed and sample.finish == "stop") for sample in group.samples]


def language_consistency(group: Group) -> list[float]:
    """Share of the thinking's words in the script of the question; 1 where thinking was skipped as asked."""
    target = main_script(group.problem.prompt)
    if group.mode == "no_think":
        return [
            1.0 if not sample.parts.thinking else consistency(sample.parts.thinking, target=target)
            for sample in group.samples
        ]
    return [consistency(sample.parts.thinking or "", target=target) for sample in group.samples]


def length(group: Group) -> list[float]:
    """Kimi k1.5's length reward (section 2.3.3), in tokens within the group.

    From 0.5 for the shortest to -0.5 for the longest when right; a wrong answer is never paid for being short.
    """
    tokens_G = [len(sample.response_ids) for sample in group.samples]
    shortest, longest = min(tokens_G), max(tokens_G)
    if shortest == longest:
        return [0.0] * len(tokens_G)
    rewards_G = []
    for tokens, sample in zip(tokens_G, group.samples, strict=True):
        reward = 0.5 - (tokens - shortest) / (longest - shortest)
        rewards_G.append(reward if sample.verdict.status == "correct" else min(0.0, reward))
    return rewards_G


def overlong(group: Group) -> list[float]:
    """Soft punishment of DAPO (arXiv 2503.14476, eq. 13): 0, then linearly to -1 over the last part of the limit."""
    ramp = OVERLONG_SHARE * group.max_tokens
    start = group.max_tokens - ramp
    return [-min(1.0, max(0.0, (len(sample.response_ids) - start) / ramp)) for sample in group.samples]


def repetition(group: Group) -> list[float]:
    """Minus the share of 20-token runs that occurred before; -1 where sampling was stopped for repeating."""
    rewards_G = []
    for sample in group.samples:
        ids = sample.response_ids
        runs = [ids[i : i + REPEAT_NGRAM] for i in range(len(ids) - REPEAT_NGRAM + 1)]
        share = 1.0 - len(set(runs)) / len(runs) if runs else 0.0
        rewards_G.append(-1.0 if sample.finish == "repeat" else -share)
    return rewards_G


Term = Callable[[Group], list[float]]

TERMS: Mapping[str, Term] = {
    "accuracy": accuracy,
    "format": format_reward,
    "language_consistency": language_consistency,
    "length": length,
    "overlong": overlong,
    "repetition": repetition,
}

_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def evaluate_term(name: str, term: Term, group: Group) -> list[float]:
    """The term's G numbers; a crash, a wrong number of them or one that is not finite raises StageError.

    A reward that cannot be computed must not turn into a reward: nobody would notice.
    """
    where = f"reward term '{name}', problem {group.problem.id}"
    try:
        rewards_G = term(group)
    except _FAULTS as error:
        raise StageError(f"{where}: crashed: {type(error).__name__}: {error}") from error
    if len(rewards_G) != len(group.samples):
        raise StageError(f"{where}: got {len(rewards_G)} rewards, wanted {len(group.samples)}")
    for number, reward in enumerate(rewards_G):
        if not math.isfinite(reward):
            raise StageError(f"{where}: got {reward} for sample {number}, wanted a finite number")
    return rewards_G


def total_reward(group: Group, weights: Mapping[str, float]) -> tuple[list[float], dict[str, list[float]]]:
    """(weighted sum, every term by name), each with G numbers; unknown names raise StageError."""
    if unknown := sorted(set(weights) - set(TERMS)):
        raise StageError(f"reward term: got '{unknown[0]}', wanted one of {', '.join(sorted(TERMS))}")
    terms = {name: evaluate_term(name, TERMS[name], group) for name in weights}
    totals_G = [sum(weights[name] * terms[name][i] for name in weights) for i in range(len(group.samples))]
    return totals_G, terms
