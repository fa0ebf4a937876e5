"""Stage grade: sample every prompt several times; the share of right answers is its difficulty."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.engine.policy import load_policy
from posttrain.errors import StageError
from posttrain.evals.figures import pass_rate_histogram
from posttrain.job import open_job
from posttrain.loops.sample import sample_policy
from posttrain.records import Problem, read_jsonl, write_jsonl


def main() -> None:
    with open_job("grade", parallel=True) as job:
        section = job.params.grade
        policy = load_policy(Path("models/sft"), precision=job.params.engine.precision)
        problems = read_jsonl(Path("data/curated/train.jsonl"), Problem)[: section.problems]
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
        # What could not be verified is no wrong answer: it is in no pass rate, and a prompt without any is not graded.
        verdicts = [[s.correct for s in group if s.verdict.status != "unverified"] for group in groups]
        graded = [
            dataclasses.replace(problem, pass_rate=sum(right) / len(right))
            for problem, right in zip(problems, verdicts, strict=True)
            if right
        ]
        rates = [problem.pass_rate or 0.0 for problem in graded]
        kept = [
            p for p, rate in zip(graded, rates, strict=True) if section.min_pass_rate <= rate <= section.max_pass_rate
        ]
        if len(kept) < job.params.grpo.prompts_per_step:
            raise StageError(
                f"{len(kept)} of {len(graded)} prompts have a pass rate from {section.min_pass_rate} to "
                f"{section.max_pass_rate}, wanted at least grpo.prompts_per_step = {job.params.grpo.prompts_per_step}"
            )
        with job.publish(Path("data/graded")) as folder:
            write_jsonl(folder / "problems.jsonl", kept)
            write_jsonl(folder / "samples.jsonl", [sample.rollout for group in groups for sample in group])
        counts = Counter(round(rate * section.samples) for rate in rates)
        histogram = {str(right): counts[right] for right in range(section.samples + 1)}
        job.figure("pass-rates", pass_rate_histogram(histogram, kept=(section.min_pass_rate, section.max_pass_rate)))
        job.table("samples", [{"problem": g[0].problem.prompt, "response": g[0].text} for g in groups[:20]])
        job.report(
            {
                "graded": len(graded),
                "kept": len(kept),
                "kept_fraction": len(kept) / len(graded),
                "trivial": sum(rate > section.max_pass_rate for rate in rates),
                "impossible": sum(rate < section.min_pass_rate for rate in rates),
                "mean_pass_rate": sum(rates) / len(rates),
                "samples": section.samples,
                "unverified": sum(s.verdict.status == "unverified" for group in groups for s in group),
                "histogram": histogram,
                "min_pass_rate": section.min_pass_rate,
                "max_pass_rate": section.max_pass_rate,
            }
        )


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
