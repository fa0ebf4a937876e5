"""Preference pairs from samples: a judge orders them, noise flips some, prompts are split before pairs are made.

What a judge says has no noise in it (posttrain.evals.judge, posttrain.loops.judges); how its order becomes labels
stands in posttrain.evals.annotators.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.chat.template import END_OF_TEXT, THINK_CLOSE, THINK_OPEN, TURN_END
from posttrain.evals.annotators import Annotation
from posttrain.evals.intervals import resample
from posttrain.evals.judge import PAIRINGS, Judged, Ordered, win_rate
from posttrain.records import DataError, Pair

if TYPE_CHECKING:  # who checks pairs need not load what samples them
    from posttrain.loops.sample import Sample

FILE = "file"
"""Judge of the pairs that a user gave."""


@dataclass(frozen=True, slots=True)
class Judge:
    name: str
    """As its pairs carry it."""
    order: Callable[[Sequence[Sequence[Sample]]], list[list[Ordered]]]
    """Of each group, which of two samples is better, and by how much; a tie makes no pair."""


def rule_judge(name: str) -> Judge:
    """A judge of posttrain.evals.judge.PAIRINGS; what could not be verified is in no pair."""

    def order(groups: Sequence[Sequence[Sample]]) -> list[list[Ordered]]:
        ordered = []
        for group in groups:
            known = [i for i, sample in enumerate(group) if sample.verdict.status != "unverified"]
            found = PAIRINGS[name]([judged(group[i]) for i in known])
            ordered.append([(known[better], known[worse], margin) for better, worse, margin in found])
        return ordered

    return Judge(name, order)


def judged(sample: Sample) -> Judged:
    """A sample as the rule judge sees it."""
    return Judged(sample.correct, not sample.mixed, sample.tokens)


def make_pairs(
    groups: Sequence[Sequence[Sample]],
    *,
    judge: Judge,
    annotate: Annotation,
    per_problem: int,
    heldout_share: float,
    seed: int,
) -> list[Pair]:
    """At most `per_problem` pairs per prompt, widest margins first; each prompt is wholly in one split.

    Equal texts make no pair, nor does a response that is empty or, being the better one, did not end its turn. Raises
    DataError with fewer than two prompts that give a pair.
    """
    rng = random.Random(seed)
    pairs: list[Pair] = []
    prompts = 0
    for group, ordered in zip(groups, judge.order(groups), strict=True):
        candidates = [
            (margin, group[better], group[worse])
            for better, worse, margin in ordered
            if teaches(group[better], group[worse])
        ]
        candidates.sort(key=lambda item: -item[0])
        split = "heldout" if rng.random() < heldout_share else "train"
        prompts += bool(candidates)
        for number, (margin, better, worse) in enumerate(candidates[:per_problem]):
            flips = annotate(margin, rng)
            for annotator, flipped in enumerate(flips):
                name = f"{better.problem.id}-{number}" + (f"-{annotator}" if len(flips) > 1 else "")
                chosen, rejected, signed = (worse, better, -margin) if flipped else (better, worse, margin)
                pairs.append(_pair(chosen, rejected, signed, name=name, judge=judge.name, split=split))
    if prompts < 2:
        raise DataError(f"preferences: {prompts} of {len(groups)} prompts gave a pair, wanted at least 2")
    return pairs


def teaches(better: Sample, worse: Sample) -> bool:
    """Whether two samples make a pair: a cut off response may be the worse one, and never an example to follow."""
    good, bad = _content(better.text), _content(worse.text)
    return bool(good and bad) and good != bad and better.rollout.finish == "stop"


def _content(text: str) -> str:
    """A response without the token that ends its turn."""
    return text.removesuffix(TURN_END).removesuffix(END_OF_TEXT).strip()


def _pair(chosen: Sample, rejected: Sample, margin: float, *, name: str, judge: str, split: Any) -> Pair:
    return Pair(
        id=name,
        problem_id=chosen.problem.id,
        prompt=chosen.problem.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        margin=margin,
        judge=judge,
        prompt_ids=chosen.rollout.prompt_ids,
        chosen_ids=chosen.rollout.response_ids,
        rejected_ids=rejected.rollout.response_ids,
        split=split,
    )


def check_pairs(pairs: Sequence[Pair], source: str) -> None:
    """Refuse, before anything is trained, pairs that teach nothing, teach to go on for ever, or leak into the held-out.

    `source`: the file, one pair a line, or what made them. Raises DataError with `source:line`, problem and field: a
    margin that is no number, equal or empty responses, a chosen one that was cut off (unless noise chose it; of pairs
    that a user gave, a rejected one too), a prompt in both splits, fewer than two prompts, nothing to train on.
    """
    first: dict[str, tuple[str, str]] = {}
    for number, pair in enumerate(pairs, start=1):
        where = f"{source}:{number}"
        if faults := _faults(pair):
            field, got, wanted = faults[0]
            raise DataError(f"{where}: problem '{pair.problem_id}': field '{field}': got {got}, wanted {wanted}")
        split, there = first.setdefault(pair.prompt, (pair.split, where))
        if split != pair.split:
            raise DataError(
                f"{where}: problem '{pair.problem_id}': field 'split': got '{pair.split}', and {there} has the same "
                f"prompt in '{split}'; wanted: each prompt in one split"
            )
    if len(first) < 2:
        raise DataError(f"{source}: got pairs of {len(first)} prompts, wanted at least 2")
    if all(split != "train" for split, _ in first.values()):
        raise DataError(f"{source}: got no pair in split 'train', wanted some to train on")


def _faults(pair: Pair) -> list[tuple[str, str, str]]:
    """(field, value got, value wanted) of all that is wrong with a pair by itself."""
    sides = (("chosen", pair.chosen, pair.chosen_ids), ("rejected", pair.rejected, pair.rejected_ids))
    faults = [
        (field, repr(text[:40]), "a response that is not empty") for field, text, _ in sides if not _content(text)
    ]
    if not math.isfinite(pair.margin):
        faults.append(("margin", str(pair.margin), "a finite number"))
    if _content(pair.chosen) == _content(pair.rejected):
        faults.append(("rejected", "the text of 'chosen'", "another response"))
    given = pair.judge == FILE or not pair.chosen_ids
    for field, text, ids in sides:
        by_noise = field == "chosen" and pair.margin < 0
        if (given or (field == "chosen" and not by_noise)) and _cut_off(text, sampled=bool(ids), given=given):
            faults.append((field, f"a response that ends {text[-30:]!r}", "a whole one: this one was cut off"))
    return faults


def _cut_off(text: str, *, sampled: bool, given: bool) -> bool:
    """Without the end of its turn, where it comes as ids; a thought that a user's text never closes."""
    ended = not sampled or text.endswith((TURN_END, END_OF_TEXT))
    return not ended or (given and THINK_OPEN in text and THINK_CLOSE not in text)


def pair_report(pairs: Sequence[Pair], *, problems: int) -> dict[str, Any]:
    """Counts, label agreement with the judge, and the length gap that a reward model may take for quality."""
    gaps = [len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs]
    return {
        "problems": problems,
        "prompts_with_pairs": len({pair.problem_id for pair in pairs}),
        "pairs": len(pairs),
        "train_pairs": sum(pair.split == "train" for pair in pairs),
        "heldout_pairs": sum(pair.split == "heldout" for pair in pairs),
        "agreement": sum(pair.margin >= 0 for pair in pairs) / len(pairs),
        "mean_margin": sum(abs(pair.margin) for pair in pairs) / len(pairs),
        "length_gap_mean": sum(gaps) / len(gaps),
        "chosen_shorter": sum(gap < 0 for gap in gaps) / len(gaps),
    }


def judged_win_rate(
    ours: Sequence[Sequence[Sample]], theirs: Sequence[Sequence[Sample]], *, seed: int, draws: int = 10000
) -> dict[str, float]:
    """Win rate of one policy's samples over another's on the same prompts, with what decided; ties count half."""
    return win_rate(
        [[judged(sample) for sample in group] for group in ours],
        [[judged(sample) for sample in group] for group in theirs],
        resample(len(ours), draws=draws, seed=seed),
    ).to_json()
