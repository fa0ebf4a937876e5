"""Preference pairs from samples: a judge orders them, noise flips some, prompts are split before pairs are made.

Judges disagree; a reward model that has only seen clean labels says little about one that has not. The flip rate swaps
that share of the pairs, as AlpacaFarm does for its simulated annotators (arXiv 2305.14387, section 3.1).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from posttrain.evals.intervals import resample
from posttrain.evals.judge import PAIRINGS, Judged, win_rate
from posttrain.loops.pair_inputs import is_empty
from posttrain.loops.sample import Sample
from posttrain.records import DataError, Pair


def judged(sample: Sample) -> Judged:
    """A sample as the rule judge sees it."""
    return Judged(sample.correct, not sample.mixed, sample.tokens)


def can_be_learnt(better: Sample, worse: Sample) -> bool:
    """Whether the texts differ, both say something, and the better one has ended its turn."""
    differ = better.text != worse.text and not is_empty(better.text) and not is_empty(worse.text)
    return differ and better.rollout.finish == "stop"


def make_pairs(
    groups: Sequence[Sequence[Sample]],
    *,
    judge: str,
    per_problem: int,
    flip_rate: float,
    heldout_share: float,
    seed: int,
) -> list[Pair]:
    """At most `per_problem` pairs per prompt, widest margins first; each prompt is wholly in one split.

    `judge` is a key of posttrain.evals.judge.PAIRINGS. Raises DataError with fewer than two prompts that give a pair.
    """
    rng = random.Random(seed)
    pairs: list[Pair] = []
    prompts = 0
    for group in groups:
        known = [sample for sample in group if sample.verdict.status != "unverified"]
        candidates = [
            (margin, known[better], known[worse])
            for better, worse, margin in PAIRINGS[judge]([judged(sample) for sample in known])
            if can_be_learnt(known[better], known[worse])
        ]
        candidates.sort(key=lambda item: -item[0])
        split = "heldout" if rng.random() < heldout_share else "train"
        prompts += bool(candidates)
        for number, (margin, chosen, rejected) in enumerate(candidates[:per_problem]):
            if flipped := rng.random() < flip_rate:
                chosen, rejected = rejected, chosen
            signed = -margin if flipped else margin
            pairs.append(_pair(chosen, rejected, signed, judge=judge, number=number, split=split))
    if prompts < 2:
        raise DataError(f"preferences: {prompts} of {len(groups)} prompts gave a pair, wanted at least 2")
    return pairs


def _pair(chosen: Sample, rejected: Sample, margin: float, *, judge: str, number: int, split: Any) -> Pair:
    return Pair(
        id=f"{chosen.problem.id}-{number}",
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


def pair_report(pairs: Sequence[Pair], *, problems: int) -> dict[str, Any]:
    """Counts, label agreement with the judge, and the length gap that a reward model may take for quality."""
    gaps = [len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs]
    return {
        "problems": problems,
        "prompts_with_pairs": len({pair.problem_id for pair in pairs}),
        "pairs": len(pairs),
        "train_pairs": sum(pair.split == "train" for pair in pairs),
        "heldout_pairs": sum(pair.split == "heldout" for pair in pairs),
        "agreement": sum(pair.margin > 0 for pair in pairs) / len(pairs),
        "mean_margin": sum(abs(pair.margin) for pair in pairs) / len(pairs),
        "length_gap_mean": sum(gaps) / len(gaps),
        "chosen_shorter": sum(gap < 0 for gap in gaps) / len(gaps),
    }


def judged_win_rate(
    ours: Sequence[Sequence[Sample]], theirs: Sequence[Sequence[Sample]], *, seed: int, draws: int = 10000
) -> dict[str, float]:
    """Win rate of one policy's samples over another's on the same prompts, with what decided; ties count half."""
    won = win_rate(
        [[judged(sample) for sample in group] for group in ours],
        [[judged(sample) for sample in group] for group in theirs],
        resample(len(ours), draws=draws, seed=seed),
    )
    parts = {name: value for name, value in dataclasses.asdict(won).items() if name != "rate"}
    return {**won.rate.to_json(), **parts}
