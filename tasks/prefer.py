"""Stage prefer: pairs of the fused model's own answers, ordered by the judge of params.yaml, with label noise."""

from __future__ import annotations

import random
from pathlib import Path

from posttrain.engine.policy import load_policy
from posttrain.job import open_job
from posttrain.loops.pairs import make_pairs, pair_report
from posttrain.loops.sample import sample_policy
from posttrain.records import Problem, read_jsonl, write_jsonl


def main() -> None:
    with open_job("prefer") as job:
        section = job.params.prefer
        policy = load_policy(Path("models/fuse"), precision=job.params.engine.precision)
        train = read_jsonl(Path("data/curated/train.jsonl"), Problem)
        problems = random.Random(job.seed).sample(train, min(section.problems, len(train)))
        groups = sample_policy(
            policy,
            problems,
            mode="think",
            samples=section.samples,
            generation=section.generation,
            seed=job.seed,
            engine=job.params.engine,
            machine=job.system,
        )
        pairs = make_pairs(
            groups,
            judge=section.judge,
            per_problem=section.max_pairs_per_problem,
            flip_rate=section.flip_rate,
            heldout_share=section.heldout_share,
            seed=job.seed,
        )
        with job.publish(Path("data/preferences")) as folder:
            write_jsonl(folder / "pairs.jsonl", pairs)
        job.table("pairs", [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs[:20]])
        job.report(pair_report(pairs, problems=len(problems)))


if __name__ == "__main__":
    main()
