"""Reward terms: pure functions of the samples of one prompt, each giving one number per sample.

The total reward is their weighted sum (posttrain.rewards.total); weights and schedules are the caller's.

Shape: G samples of a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from posttrain.chat.split import Parts, extract_answer
from posttrain.records import Finish, Mode, Problem, Verdict
from posttrain.rewards.language import consistency, identify, identity, main_script

OVERLONG_SHARE = 4096 / 20480
"""Last part of the token limit over which the overlong penalty grows (DAPO, section 3.4)."""

EASY_SHARE, HARD_SHARE = 0.1, 0.5
"""Target lengths of `length_difficulty` for pass rates 1 and 0, as shares of the token limit."""

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
    prompt_ids: tuple[int, ...]
    """The prompt as it was sampled from."""


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


def language_identity(group: Group) -> list[float]:
    """Share of the thinking's words in the language of the question, by py3langid.

    A thought too short for the identifier gets the mean of the others, which neither pays nor costs it anything; no
    thought gets 0. A question without a language (too short, or a formula) gives 0 to all.
    """
    target = identify(group.problem.prompt)
    if target is None:
        return [0.0] * len(group.samples)
    shares_G = [_identity(sample.parts.thinking, group.mode, target) for sample in group.samples]
    told = [share for share in shares_G if share is not None]
    others = math.fsum(told) / len(told) if told else 0.0
    return [others if share is None else share for share in shares_G]


def _identity(thinking: str | None, mode: Mode, target: str) -> float | None:
    if not thinking:
        return 1.0 if mode == "no_think" else 0.0
    return identity(thinking, target=target)


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


def length_difficulty(group: Group) -> list[float]:
    """Half the distance to a target length, (target - len) / (2 target), within [-0.5, 0.5], in tokens.

    The target goes with the graded pass rate, from HARD_SHARE of the token limit at 0 down to EASY_SHARE at 1: an easy
    problem deserves less than a hard one. A budget by difficulty is DAST's (arXiv 2503.04472), whose budget also uses
    the lengths of the samples; with fixed ends a response's reward is its own, whatever else is in its group. A wrong
    answer is never paid for being short. Raises ValueError for a problem that was not graded.
    """
    rate = group.problem.pass_rate
    if rate is None:
        raise ValueError("the problem has no pass_rate, wanted one from stage grade")
    target = group.max_tokens * (HARD_SHARE + (EASY_SHARE - HARD_SHARE) * rate)
    rewards_G = []
    for sample in group.samples:
        reward = max(-0.5, 0.5 - len(sample.response_ids) / (2.0 * target))
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


def brier(group: Group) -> list[float]:
    """Minus (c - y)^2, with y = 1 for a right answer, else 0, and c the confidence in it (RLCR, arXiv 2507.16806).

    There c is what the model states. Here it is what needs no words: the share of the group's other samples with the
    same answer, so that being wrong in unison costs most. Right answers are the same, wrong ones where their texts are;
    without an answer c is 0. A right answer that no other sample found gets -1: with the weight of `accuracy` it would
    be worth no more than a wrong one, with less it is. A sample that could not be verified has neither a reward nor a
    vote. Raises ValueError for a group of one, which has no others to ask.
    """
    if len(group.samples) < 2:
        raise ValueError("brier: got a group of 1 sample, wanted at least 2: confidence is agreement with the others")
    said_G = [_said(sample, group.mode) for sample in group.samples]
    votes = Counter(said for said in said_G if said is not None)
    known = sum(sample.verdict.status != "unverified" for sample in group.samples)
    rewards_G = []
    for sample, said in zip(group.samples, said_G, strict=True):
        if sample.verdict.status == "unverified" or known < 2:
            rewards_G.append(0.0)
            continue
        confidence = 0.0 if said is None else (votes[said] - 1) / (known - 1)
        rewards_G.append(-((confidence - float(sample.verdict.status == "correct")) ** 2))
    return rewards_G


def _said(sample: Sample, mode: Mode) -> tuple[str, str] | None:
    """What a sample votes for; None: it has no answer, or nobody knows what it is worth."""
    if sample.verdict.status == "correct":
        return ("right", "")
    if sample.verdict.status == "unverified" or (mode == "think" and sample.parts.thinking is None):
        return None
    answer = extract_answer(sample.parts.answer, require_think_closed=False)
    return None if answer is None else ("wrong", answer)


Term = Callable[[Group], list[float]]

TERMS: Mapping[str, Term] = {
    "accuracy": accuracy,
    "brier": brier,
    "format": format_reward,
    "language_consistency": language_consistency,
    "language_identity": language_identity,
    "length": length,
    "length_difficulty": length_difficulty,
    "overlong": overlong,
    "repetition": repetition,
}
