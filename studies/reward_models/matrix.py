"""Reward models of every body on every share of the pairs, with several seeds, all measured on the same held-out pairs.

Held-out prompts are resampled for the intervals; they hold the seeds' mean fixed. What another training would have
given is another level: the results of single seeds stand beside it, with the standard error over them.

Shapes: S seeds, Q held-out prompts, R bootstrap draws.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.chat.template import decode_ids
from posttrain.config import Engine
from posttrain.engine.policy import Policy, count_parameters, load_policy
from posttrain.evals.intervals import Floats, bootstrap_ratio, resample
from posttrain.evals.pair_quality import Compared, calibration_error, log_loss
from posttrain.loops.reward_model import compare, run_reward_model
from posttrain.records import DataError, Pair
from studies.reward_models.plan import Study

SAVE_EVERY = 10**9
"""Steps between checkpoints: a model takes seconds and starts again when it was interrupted."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cells share."""

    study: Study
    engine: Engine
    train: Sequence[Pair]
    heldout: Sequence[Pair]
    work: Path
    """Folder for what a training leaves; nothing of it is kept."""
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cell:
    body: str
    share: float
    parameters: int
    pairs: int
    """Trained on; the mean over seeds, since prompts differ in their number of pairs."""
    runs: Sequence[Sequence[Compared]]
    """Of each seed, the held-out pairs in one order."""


def run(bench: Bench) -> dict[str, Any]:
    """The report: every cell, against the same body on the smallest share and the first body on the same one."""
    if not bench.heldout:
        raise DataError(f"{bench.study.pairs}: got no pair in split 'heldout', wanted some to measure on")
    cells: dict[tuple[str, float], Cell] = {}
    for body, folder in bench.study.bodies.items():
        policy = load_body(Path(folder), bench)
        for share in bench.study.shares:
            cells[body, share] = train_cell(bench, policy, body, share)
    prompts = sorted({pair.problem_id for pair in bench.heldout})
    counts_RQ = resample(len(prompts), draws=bench.study.bootstrap, seed=bench.study.seed)
    first_body, first_share = next(iter(bench.study.bodies)), bench.study.shares[0]
    return {
        "heldout_pairs": len(bench.heldout),
        "heldout_prompts": len(prompts),
        "seeds": bench.study.seeds,
        "cells": [
            outcome(cell, cells[body, first_share], cells[first_body, share], prompts, counts_RQ)
            for (body, share), cell in cells.items()
        ],
    }


def load_body(folder: Path, bench: Bench) -> Policy:
    """The model of a folder; raises DataError where its tokenizer does not read the pairs' ids as their text."""
    policy = load_policy(folder, precision=bench.engine.precision)
    pair = bench.heldout[0]
    if pair.chosen_ids and decode_ids(policy.tokenizer, pair.chosen_ids) != pair.chosen:
        raise DataError(
            f"{folder}: its tokenizer reads pair '{pair.id}' as another text, wanted: the pairs' vocabulary"
        )
    return policy


def train_cell(bench: Bench, policy: Policy, body: str, share: float) -> Cell:
    """A reward model per seed, each measured on all held-out pairs."""
    runs, sizes = [], []
    for number in range(bench.study.seeds):
        seed = bench.study.seed + number
        pairs = part(bench.train, share, seed=seed)
        model, _ = run_reward_model(
            policy,
            pairs,
            section=bench.study.training,
            engine=bench.engine,
            seed=seed,
            log=lambda metrics, step: None,
            checkpoints=bench.work / f"{body}-{share}-{seed}",
            save_every=SAVE_EVERY,
        )
        runs.append(compare(model, policy, bench.heldout, micro_batch_tokens=bench.engine.micro_batch_tokens))
        sizes.append(len(pairs))
    cell = Cell(body, share, count_parameters(model), round(statistics.mean(sizes)), runs)
    accuracy = statistics.mean(pair.right for found in runs for pair in found)
    bench.note(f"{body}, {cell.pairs} pairs: held-out accuracy {accuracy:.3f}")
    return cell


def part(pairs: Sequence[Pair], share: float, *, seed: int) -> list[Pair]:
    """The pairs of a share of the prompts, at least one; of one seed, a larger share contains a smaller one."""
    prompts = sorted({pair.problem_id for pair in pairs})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[: max(1, round(share * len(prompts)))])
    return [pair for pair in pairs if pair.problem_id in kept]


def outcome(cell: Cell, fewest: Cell, first: Cell, prompts: Sequence[str], counts_RQ: Floats) -> dict[str, Any]:
    """A cell's numbers: accuracy over all seeds, and against the same body on fewest pairs and the first body."""
    right_Q, fewest_Q, first_Q = (right_by_prompt(other, prompts) for other in (cell, fewest, first))
    trials_Q = len(cell.runs) * tally([1.0] * len(cell.runs[0]), cell.runs[0], prompts)
    judged_Q = sum(tally([float(p.as_judged) for p in found], found, prompts) for found in cell.runs)
    margins = [pair.reward_margin for found in cell.runs for pair in found]
    per_seed = [statistics.mean(pair.right for pair in found) for found in cell.runs]
    intervals = {
        "accuracy": bootstrap_ratio(right_Q, trials_Q, counts_RQ),
        "accuracy_to_judge": bootstrap_ratio(judged_Q, trials_Q, counts_RQ),
        "over_fewest_pairs": bootstrap_ratio(right_Q - fewest_Q, trials_Q, counts_RQ),
        "over_first_body": bootstrap_ratio(right_Q - first_Q, trials_Q, counts_RQ),
    }
    return {
        "body": cell.body,
        "parameters": cell.parameters,
        "share": cell.share,
        "pairs": cell.pairs,
        **{name: interval.to_json() for name, interval in intervals.items() if interval is not None},
        "per_seed": per_seed,
        "seed_se": statistics.stdev(per_seed) / math.sqrt(len(per_seed)) if len(per_seed) > 1 else None,
        "ties": statistics.mean(margin == 0 for margin in margins),
        "log_loss": log_loss(margins),
        "ece": statistics.mean(calibration_error([pair.reward_margin for pair in found]) for found in cell.runs),
    }


def right_by_prompt(cell: Cell, prompts: Sequence[str]) -> Floats:
    """Pairs of each held-out prompt that were ordered as labelled, over all seeds, [Q]."""
    return sum(
        (tally([float(pair.right) for pair in found], found, prompts) for found in cell.runs), np.zeros(len(prompts))
    )


def tally(values: Sequence[float], pairs: Sequence[Compared], prompts: Sequence[str]) -> Floats:
    """Sums of the pairs' values by prompt, [Q]."""
    place = {prompt: index for index, prompt in enumerate(prompts)}
    sums_Q = np.zeros(len(prompts))
    np.add.at(sums_Q, [place[pair.prompt] for pair in pairs], values)
    return sums_Q
