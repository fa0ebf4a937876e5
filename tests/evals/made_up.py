"""A made-up run of the chain, written as the stages would write it: what the page is built from in tests."""

import csv
import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.evals.rows import QuestionRow, write_rows
from posttrain.evals.suite import summarise
from posttrain.files import rounded
from tests.evals import worlds

SKILLS: Mapping[str, dict[str, Any]] = {
    "base": {"skill": 0.24, "no_think": 0.1, "tokens": 38, "mixed": 0.2, "chat": False},
    "sft": {"skill": 0.46, "no_think": 0.14, "tokens": 58, "mixed": 0.33},
    "grpo": {"skill": 0.85, "no_think": 0.16, "tokens": 41, "mixed": 0.01},
    "fuse": {"skill": 0.85, "no_think": 0.33, "tokens": 42, "mixed": 0.01},
    "align": {"skill": 0.86, "no_think": 0.33, "tokens": 33, "mixed": 0.0},
    "distill": {"skill": 0.80, "no_think": 0.26, "tokens": 34, "mixed": 0.0},
}
PARAMETERS = {"base": 918_656, "distill": 272_000}
WORKING = (
    "Step by step: 3+9=12, 然后 12-4=8, then 8+5=13. Maybe 9+4=13. No, start over. "
    "Check again: 3+9=12, then 12-4=8, 所以答案是 13."
)


def evaluation_rows(model: str, *, questions: int) -> list[QuestionRow]:
    skill = SKILLS[model]
    made = worlds.rows(questions=questions, seed=len(model), **skill)
    for q, row in enumerate(made):
        box = f"\\boxed{{{row.think.answers[0]}}}" if row.think.answers[0] else "the answer & the <end"
        working = (
            WORKING if row.think.mixed[0] else WORKING.replace("然后", "then").replace("所以答案是", "So the answer is")
        )
        text = (
            f" {working} {box}<|endoftext|>" if model == "base" else f"<think>\n{working}\n</think>\n\n{box}<|im_end|>"
        )
        direct = dataclasses.replace(row.no_think, text=f"\\boxed{{{row.no_think.answers[0]}}}<|im_end|>")
        made[q] = dataclasses.replace(row, think=dataclasses.replace(row.think, text=text), no_think=direct)
    return made


def write_run(root: Path, *, questions: int = 120) -> None:
    """All files below `root`."""
    previous = None
    rows = {}
    for model in SKILLS:
        rows[model] = evaluation_rows(model, questions=questions)
        write_rows(root / f"data/evaluations/{model}.jsonl", rows[model])
        result = summarise(
            rows[model],
            model=model,
            parameters=PARAMETERS.get(model, PARAMETERS["base"]),
            pass_at=(1, 4, 8),
            bootstrap=500,
            ece_bins=10,
            seed=1,
            previous=previous,
        )
        write_json(root / f"reports/evaluate/{model}.json", result)
        previous = (model, rows[model])
    won = {
        "value": 0.674,
        "low": 0.652,
        "high": 0.697,
        "by_correct": 0.28,
        "by_script": 0.01,
        "by_length": 0.69,
        "ties": 0.02,
    }
    for stage, report in stage_reports(won).items():
        write_json(root / f"reports/{stage}.json", report)
    for stage, (steps, columns) in CURVES.items():
        write_curve(root / f"reports/curves/{stage}.csv", steps, columns)


def stage_reports(won: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    rates = (62, 74, 96, 118, 131, 142, 151, 168, 258)
    return {
        "curate": {"train": 4127, "heldout": 600, "drops": drops()},
        "grade": {
            "histogram": {str(k): n for k, n in enumerate(rates)},
            "min_pass_rate": 0.05,
            "max_pass_rate": 0.95,
        },
        "grpo": {
            "length_reward_start": 36,
            "end": {f"reward/{term}_weight": 1.0 for term in ("accuracy", "format", "language_consistency", "length")},
            "heldout": {
                "0": {"accuracy": 0.451, "tokens": 66.0, "tokens_correct": 56.4},
                "36": {"accuracy": 0.842, "tokens": 61.0, "tokens_correct": 57.2},
                "64": {"accuracy": 0.851, "tokens": 44.0, "tokens_correct": 40.9},
            },
        },
        "prefer": {"pairs": 1130, "agreement": 0.951},
        "reward_model": {
            "heldout_pairs": 226,
            "heldout": {
                "accuracy": 0.873894,
                "accuracy_by_length": {"chosen_shorter": 0.9375, "similar_length": 0.829545, "chosen_longer": 0.714286},
                "pairs_by_length": {"chosen_shorter": 96, "similar_length": 88, "chosen_longer": 42},
            },
        },
        "align": {"win_rate": dict(won)},
        "distill": {
            "heldout": {
                "before_on_policy": {"think": {"accuracy": 0.69}, "no_think": {"accuracy": 0.22}},
                "by_rl": {"think": {"accuracy": 0.73}},
                "after_on_policy": {"think": {"accuracy": 0.78}, "no_think": {"accuracy": 0.26}},
            }
        },
    }


def drops() -> list[dict[str, Any]]:
    steps = (
        ("normalise", (("empty prompt", 0),)),
        ("question type", (("true or false", 471), ("multiple choice", 12), ("proof", 3))),
        ("gold answer", (("fails its own verifier", 7),)),
        ("duplicates", (("near-duplicate of an earlier row", 312),)),
        ("decontamination", (("shares n-grams with a held-out question", 64), ("seen in pre-training", 118))),
        ("guessable", (("right without reasoning in best of 8", 486),)),
    )
    rows, left = [], 6200
    for name, reasons in steps:
        out = left - sum(count for _, count in reasons)
        for reason, count in reasons:
            examples = ["Are 'egg' and 'add' isomorphic? True or False? <b>" for _ in range(min(3, count))]
            rows.append(
                {"filter": name, "reason": reason if count else "", "rows_in": left, "rows_out": out,
                 "dropped": count, "examples": examples}
            )  # fmt: skip
        left = out
    return rows


def rising(start: float, end: float, speed: float, noise: float) -> Callable[[int, random.Random], float]:
    return lambda step, rng: end + (start - end) * math.exp(-step / speed) + rng.gauss(0, noise)


def lengths(scale: float) -> Callable[[int, random.Random], float]:
    return lambda step, rng: (
        scale * (56 + 4 * step / 36 if step < 36 else 60 - 20 * (1 - math.exp(-(step - 36) / 9))) + rng.gauss(0, 1.2)
    )


CURVES: Mapping[str, tuple[int, dict[str, Callable[[int, random.Random], float]]]] = {
    "base": (420, {"train/loss": rising(6.4, 0.62, 45, 0.02)}),
    "sft": (60, {"train/loss": rising(0.9, 0.33, 10, 0.01)}),
    "grpo": (
        64,
        {
            "reward/accuracy": rising(0.46, 0.87, 16, 0.025),
            "reward/format": rising(0.93, 0.995, 6, 0.004),
            "reward/language_consistency": rising(0.86, 0.998, 9, 0.006),
            "train/entropy": rising(0.42, 0.16, 22, 0.008),
            "kl/k3_token": rising(0.0, 0.11, 25, 0.003),
            "train/groups_with_signal": rising(0.82, 0.36, 25, 0.04),
            "length/correct": lengths(1.0),
            "length/wrong": lengths(1.35),
        },
    ),
    "reward_model": (28, {"reward/pair_accuracy": rising(0.5, 0.88, 9, 0.03)}),
    "align": (28, {"reward/pair_accuracy": rising(0.5, 0.82, 8, 0.03)}),
    "distill": (40, {"train/agreement": rising(0.78, 0.92, 10, 0.006)}),
}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(values), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_curve(path: Path, steps: int, columns: Mapping[str, Callable[[int, random.Random], float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(path.name)
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *sorted(columns)])
        for step in range(steps):
            # Every third row lacks its last column, as a metric that is not logged at every step does.
            cells = [f"{columns[name](step, rng):.6g}" for name in sorted(columns)]
            writer.writerow([step, *cells[:-1], "" if len(cells) > 1 and step % 3 == 1 else cells[-1]])
