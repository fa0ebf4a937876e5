"""One arm of the study: an objective from models/sft, its held-out accuracy, and what it cost.

    python -m studies.objectives.arm --objective grpo

Trains exactly as stage grpo does (posttrain.loops.policy_training). The model itself is not kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain import config
from posttrain.engine.policy import Policy, frozen_copy, load_policy
from posttrain.engine.rollout import Request, RolloutEngine, make_engine
from posttrain.evals.forms import ChatForm
from posttrain.evals.measure import evaluate_thinking
from posttrain.evals.rows import ModeSamples, read_rows
from posttrain.job import Job, open_job, stage_seed
from posttrain.loops.policy_training import train_policy
from posttrain.loops.verification import verify
from posttrain.machine import usable_cores
from posttrain.records import DataError, Problem, read_jsonl
from studies.objectives.measure import divergence, outcome
from studies.objectives.meter import Meter
from studies.objectives.plan import BUDGET, Study, arm_section, load_study

BEFORE = Path("data/evaluations/sft.jsonl")
"""What models/sft answered: in the chain's evaluation, to the same questions with the same draws."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", required=True)
    name = parser.parse_args().objective
    with open_job(f"studies/objectives@{name}") as job:
        study = load_study()
        section = arm_section(name, job.params, study)
        job.parameters({"objective": name, "grpo": section.model_dump(mode="json")})
        policy = load_policy(Path("models/sft"), precision=job.params.engine.precision)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        meter = Meter(
            make_engine(policy, job.params.engine, job.system),
            heldout=[problem.id for problem in heldout],
            journal=job.checkpoints / "cost.jsonl",
        )
        report = {
            "objective": name,
            "budget": section.model_dump(mode="json", include=set(BUDGET)),
            "learning_rate": section.optimizer.lr,
            "machine": {"cores": usable_cores(), "torch": torch.__version__},
            **train_and_measure(job, study, section, policy, heldout, meter),
            "cost": meter.total(),
        }
        meter.close()
        job.report(report)


def train_and_measure(
    job: Job, study: Study, section: config.Rl, policy: Policy, heldout: Sequence[Problem], meter: Meter
) -> dict[str, Any]:
    """Looks during training, and the policy at its end beside the one it was."""
    seed = stage_seed(job.params.seed, "evaluate")
    reference = Policy(frozen_copy(policy.model), policy.tokenizer)
    before = answers_before(heldout)
    watched = heldout[: study.watched]
    tokens = job.params.engine.micro_batch_tokens
    at_start = watch(meter, policy, reference, watched, section, micro_batch_tokens=tokens, seed=seed)

    def log(metrics: dict[str, float], step: int) -> None:
        job.log(metrics, step=step, total=section.steps if section.method == "rl" else None)
        if "time/step" in metrics:  # not a look alone
            meter.step(metrics, step)

    trained = train_policy(
        policy,
        read_jsonl(Path("data/graded/problems.jsonl"), Problem),
        heldout,
        section=section,
        rollouts=meter,
        engine=job.params.engine,
        seed=job.seed,
        log=log,
        checkpoints=job.checkpoints,
    )
    samples = evaluate_thinking(policy.tokenizer, meter, heldout, job.params.evaluate, seed=seed, verify=verify)
    result = outcome(samples, before, bootstrap=job.params.evaluate.bootstrap, seed=seed)
    result["sft"] |= at_start
    result["end"] |= watch(meter, policy, reference, watched, section, micro_batch_tokens=tokens, seed=seed)
    return {
        "questions": len(samples),
        "samples": job.params.evaluate.samples,
        "curve": [{"step": int(step), **look} for step, look in trained["heldout"].items()],
        **result,
    }


def answers_before(heldout: Sequence[Problem]) -> list[ModeSamples]:
    """What the model that every arm starts from answered to the held-out questions, thinking."""
    rows = read_rows(BEFORE)
    if [row.id for row in rows] != [problem.id for problem in heldout]:
        raise DataError(f"{BEFORE}: got other questions than data/curated/heldout.jsonl, wanted the same in its order")
    return [row.think for row in rows]


def watch(
    rollouts: RolloutEngine,
    policy: Policy,
    reference: Policy,
    problems: Sequence[Problem],
    section: config.Rl,
    *,
    micro_batch_tokens: int,
    seed: int,
) -> dict[str, float]:
    """KL to the reference and entropy, on one answer to each problem."""
    form = ChatForm(policy.tokenizer)
    requests = [Request(problem.id, form.prompt(problem, "think")) for problem in problems]
    answers = rollouts.generate(requests, samples=1, generation=section.generation, seed=seed, stop_ids=form.stop_ids)
    return divergence(
        policy.model,
        reference.model,
        answers,
        temperature=section.generation.temperature,
        micro_batch_tokens=micro_batch_tokens,
    )


if __name__ == "__main__":
    main()
