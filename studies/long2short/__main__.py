"""Four ways to make a long thinker brief, from one long model, measured on the same held-out questions.

    python -m studies.long2short

Needs models/base, models/sft, data/curated and data/graded of the chain. The long model is trained here, by stage
grpo's recipe without its terms on length. Writes reports/studies/long2short.json and the table in
docs/long_to_short.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.arguments import no_arguments
from posttrain.boundary import WORK
from posttrain.config import ConfigError, load_params
from posttrain.engine.policy import Policy
from posttrain.errors import StageError
from posttrain.evals.intervals import resample
from posttrain.files import rounded, write_atomic
from posttrain.job import stage_seed
from posttrain.loops.sample import Sample
from posttrain.records import DataError, Problem, read_jsonl
from posttrain.system import apply_environment, load_system
from studies.long2short.arms import ARMS, Bench, long_samples, make_long, make_short
from studies.long2short.measure import outcome
from studies.long2short.page import REPORT, write_page
from studies.long2short.plan import load_study

LINE_SECONDS = 5.0
"""Time between two lines of progress."""


def open_bench() -> Bench:
    """Everything that is read, before anything is trained."""
    machine = load_system()
    apply_environment(machine)
    params, study = load_params(), load_study()
    work = WORK / "studies/long2short"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    curated = Path("data/curated")
    return Bench(
        params=params,
        study=study,
        machine=machine,
        seed=stage_seed(params.seed, "studies/long2short"),
        train=read_jsonl(curated / "train.jsonl", Problem),
        graded=read_jsonl(Path("data/graded/problems.jsonl"), Problem),
        heldout=read_jsonl(curated / "heldout.jsonl", Problem),
        work=work,
        log=Progress(),
    )


class Progress:
    """A line of what an arm logs, now and then."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        if time.monotonic() - self._last > LINE_SECONDS:
            self._last = time.monotonic()
            shown = [f"{name} {metrics[name]:.4g}" for name in ("train/loss", "reward/accuracy", "length/mean")
                     if name in metrics]  # fmt: skip
            print(f"  step {step} | {' | '.join(shown)}", flush=True)


def timed(name: str, make: Callable[[], Any]) -> tuple[Any, float]:
    """What `make` makes, and the seconds it took."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def run(bench: Bench) -> dict[str, Any]:
    """Every model of the study against the long one."""
    section = bench.study.evaluate
    counts_RQ = resample(len(bench.heldout), draws=section.bootstrap, seed=bench.seed)
    models: dict[str, Any] = {}
    start: list[list[Sample]] = []

    def look(name: str, policy: Policy, seconds: float) -> None:
        answers = bench.answers(policy, bench.heldout, samples=section.samples, draw=0)
        start[:] = start or answers
        models[name] = outcome(answers, start, counts_RQ) | {"seconds": seconds}
        accuracy, tokens = models[name]["accuracy"]["value"], models[name]["tokens"]["value"]
        print(f"{name}: accuracy {accuracy:.3f}, {tokens:.1f} tokens, {seconds:.0f} s", flush=True)

    _, seconds = timed("long", lambda: make_long(bench))
    look("long", bench.long(), seconds)
    _, seconds = timed("short", lambda: make_short(bench))
    look("short", bench.short(), seconds)
    samples, sampling = timed("samples of the long model", lambda: long_samples(bench))
    for name, arm in ARMS.items():
        policy, seconds = timed(name, lambda arm=arm: arm(bench, samples))  # type: ignore[misc]
        look(name, policy, seconds + (sampling if name in ("shortest", "first", "dpo") else 0.0))
    return {"questions": len(bench.heldout), "samples": section.samples, "models": models}


def main() -> int:
    try:
        bench = open_bench()
        report = rounded(run(bench))
        write_atomic(REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        write_page(report)
    except (ConfigError, DataError, StageError) as error:
        print(error, file=sys.stderr)
        return 2
    shutil.rmtree(bench.work)
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
