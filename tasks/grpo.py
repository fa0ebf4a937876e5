"""Stage grpo: reinforcement learning on verifiable rewards; the length reward starts late, when most is right."""

from __future__ import annotations

from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.engine.policy import load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.job import open_job
from posttrain.loops.policy_training import train_policy
from posttrain.records import Problem, read_jsonl


def main() -> None:
    with open_job("grpo", parallel=True) as job:
        section = job.params.grpo
        total = section.steps if section.method == "rl" else None  # how much rft trains on is not known before
        policy = load_policy(Path("models/sft"), precision=job.params.engine.precision)
        engine = make_engine(policy, job.params.engine, job.system)
        report = train_policy(
            policy,
            read_jsonl(Path("data/graded/problems.jsonl"), Problem),
            read_jsonl(Path("data/curated/heldout.jsonl"), Problem),
            section=section,
            rollouts=engine,
            engine=job.params.engine,
            seed=job.seed,
            log=lambda metrics, step: job.log(metrics, step=step, total=total),
            checkpoints=job.checkpoints,
        )
        engine.close()
        with job.publish(Path("models/grpo")) as folder:
            save_policy(policy, folder)
        job.report(report)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
