"""Stage prefer: pairs of a model's own answers, ordered by the judge of params.yaml, or a user's; with label noise."""

from __future__ import annotations

import random
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.config_preference import FileJudge
from posttrain.engine.policy import Policy, load_policy
from posttrain.job import Job, open_job
from posttrain.loops.judges import preference_pairs
from posttrain.loops.pair_file import read_pair_file
from posttrain.loops.pairs import check_pairs, pair_report
from posttrain.loops.sample import sample_policy
from posttrain.records import Pair, Problem, read_jsonl, write_jsonl


def sampled_pairs(job: Job, policy: Policy) -> tuple[list[Pair], int]:
    """Pairs of samples of `policy`, and the number of prompts sampled."""
    section = job.params.prefer
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
    pairs = preference_pairs(groups, policy, section=section, engine=job.params.engine, seed=job.seed)
    return pairs, len(problems)


def given_pairs(job: Job, policy: Policy, path: Path) -> tuple[list[Pair], int]:
    """The pairs of a user's file, and the number of its prompts."""
    pairs = read_pair_file(
        path,
        policy.tokenizer,
        max_tokens=policy.model.config.max_position_embeddings,
        heldout_share=job.params.prefer.heldout_share,
        seed=job.seed,
    )
    return pairs, len({pair.problem_id for pair in pairs})


def main() -> None:
    with open_job("prefer", parallel=True) as job:
        section = job.params.prefer
        policy = load_policy(Path("models") / section.model, precision=job.params.engine.precision)
        if isinstance(section.judge, FileJudge):
            pairs, prompts = given_pairs(job, policy, Path(section.judge.path))
        else:
            pairs, prompts = sampled_pairs(job, policy)
        check_pairs(pairs, "prefer")
        with job.publish(Path("data/preferences")) as folder:
            write_jsonl(folder / "pairs.jsonl", pairs)
        job.table("pairs", [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs[:20]])
        job.report(pair_report(pairs, problems=prompts))


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
