"""One arm of the study: a method of stage align from models/fuse, judged against the model it started from.

    python -m studies.preferences.arm --method simpo

Trains as the first round of stage align does. The model itself is not kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.config_align import Align
from posttrain.config_align_rl import LearnedRl
from posttrain.engine.policy import Policy, frozen_copy, load_policy
from posttrain.files import append_row, journal_rows
from posttrain.job import Job, open_job
from posttrain.loops.align_rl import align_by_reward
from posttrain.loops.pairs import judged_win_rate
from posttrain.loops.preference import run_preference
from posttrain.loops.sample import Sample, sample_policy
from posttrain.machine import usable_cores
from posttrain.records import Pair, Problem, read_jsonl
from studies.preferences.measure import compare, kl_to
from studies.preferences.plan import Study, arm_section, load_study

START = Path("models/fuse")
REWARD_MODEL = Path("models/reward_model")
PAIRS = Path("data/preferences/pairs.jsonl")
SAVE_EVERY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    name = parser.parse_args().method
    with open_job(f"studies/preferences@{name}") as job:
        study = load_study()
        section = arm_section(name, job.params, study)
        job.parameters({"method": name, "align": section.model_dump(mode="json")})
        policy = load_policy(START, precision=job.params.engine.precision)
        before = Policy(frozen_copy(policy.model), policy.tokenizer)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        trained = train(job, section, policy, heldout)
        asked = heldout[: study.problems]
        ours, theirs = (answers(job, study, one, asked) for one in (policy, before))
        job.report(
            {
                "method": name,
                "numbers": section.method.model_dump(mode="json"),
                "learning_rate": section.optimizer.lr,
                "machine": {"cores": usable_cores(), "torch": torch.__version__},
                "questions": len(asked),
                "samples": study.samples,
                "win_rate": judged_win_rate(ours, theirs, seed=job.seed, draws=study.bootstrap),
                **compare(ours, theirs, draws=study.bootstrap, seed=job.seed),
                "kl": kl_to(
                    before,
                    policy,
                    ours,
                    temperature=job.params.probe.generation.temperature,
                    micro_batch_tokens=job.params.engine.micro_batch_tokens,
                ),
                "trained": trained,
                "seconds": sum(row["seconds"] for row in journal_rows(job.checkpoints / "cost.jsonl")),
            }
        )


def train(job: Job, section: Align, policy: Policy, heldout: Sequence[Problem]) -> dict[str, Any]:
    """Train `policy` in place by the arm's method; what the method itself says of it."""

    def log(metrics: dict[str, float], step: int) -> None:
        job.log(metrics, step=step)
        if "time/step" in metrics:  # not a look alone
            # Beside the checkpoints, so that an interrupted arm does not start counting at nothing.
            append_row(job.checkpoints / "cost.jsonl", {"step": step, "seconds": metrics["time/step"]})

    if isinstance(section.method, LearnedRl):
        return align_by_reward(
            policy,
            read_jsonl(Path("data/curated/train.jsonl"), Problem),
            heldout,
            section=section.method,
            optimizer=section.optimizer,
            grpo=job.params.grpo,
            folder=REWARD_MODEL,
            engine=job.params.engine,
            machine=job.system,
            seed=job.seed,
            log=log,
            checkpoints=job.checkpoints,
        )
    return run_preference(
        policy,
        read_jsonl(PAIRS, Pair),
        section=section,
        engine=job.params.engine,
        seed=job.seed,
        log=log,
        note=job.note,
        checkpoints=job.checkpoints,
        save_every=SAVE_EVERY,
        source=str(PAIRS),
    )


def answers(job: Job, study: Study, policy: Policy, problems: Sequence[Problem]) -> list[list[Sample]]:
    """Thinking answers to the held-out problems, with the same draws in every arm and for the start."""
    return sample_policy(
        policy,
        problems,
        mode="think",
        samples=study.samples,
        generation=job.params.probe.generation,
        seed=job.seed,
        engine=job.params.engine,
        machine=job.system,
    )


if __name__ == "__main__":
    main()
