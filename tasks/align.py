"""Stage align: preferences into the policy, by the method that params.yaml names, and what the judge says of it."""

from __future__ import annotations

from pathlib import Path

from posttrain.engine.policy import Policy, frozen_copy, load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.job import Job, open_job
from posttrain.loops.pairs import judged_win_rate
from posttrain.loops.preference import run_dpo
from posttrain.loops.sample import Sample, sample_problems
from posttrain.records import Pair, Problem, read_jsonl

METHODS = {"dpo": run_dpo}


def answers(job: Job, policy: Policy, problems: list[Problem]) -> list[list[Sample]]:
    """Thinking answers to the held-out prompts, with the same draws for every policy."""
    engine = make_engine(policy, job.params.engine, job.system)
    groups = sample_problems(
        engine,
        policy.tokenizer,
        problems,
        mode="think",
        samples=job.params.probe.samples,
        generation=job.params.probe.generation,
        seed=job.seed,
    )
    engine.close()
    return groups


def main() -> None:
    with open_job("align") as job:
        section = job.params.align
        policy = load_policy(Path("models/fuse"), precision=job.params.engine.precision)
        before = Policy(frozen_copy(policy.model), policy.tokenizer)
        pairs = read_jsonl(Path("data/preferences/pairs.jsonl"), Pair)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)[: section.win_problems]
        summary = METHODS[section.method](
            policy,
            pairs,
            section=section,
            engine=job.params.engine,
            seed=job.seed,
            log=job.log,
            checkpoints=job.checkpoints,
            save_every=50,
        )
        win = judged_win_rate(answers(job, policy, heldout), answers(job, before, heldout), seed=job.seed)
        with job.publish(Path("models/align")) as folder:
            save_policy(policy, folder)
        job.note(f"win rate over the fused model {win['value']:.3f} [{win['low']:.3f}, {win['high']:.3f}]")
        job.report({"method": section.method, "win_rate": win, **summary})


if __name__ == "__main__":
    main()
