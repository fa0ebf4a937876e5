"""Stage base: materialise the base model, and the small base that will be the student.

`scratch` writes a corpus, trains a tokenizer and pre-trains both models on it; the other kinds load models that exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.arguments import no_arguments
from posttrain.config import ScratchBase
from posttrain.curation.corpus import write_corpus
from posttrain.curation.solvers import solvable
from posttrain.curation.sources import load_sources
from posttrain.curation.tokenizer import train_tokenizer
from posttrain.engine.existing import load_existing
from posttrain.engine.policy import Policy, count_parameters, save_policy
from posttrain.job import Job, open_job
from posttrain.loops.pretrain import pretrain
from posttrain.records import Problem, write_jsonl

TOKENIZER_TEXTS = 5000


def from_scratch(job: Job, section: ScratchBase) -> tuple[Policy, Policy, list[Problem], dict[str, Any]]:
    """Both bases, the problems of their corpus and what training reported."""
    problems = [problem for problem in load_sources([section.source], seed=job.seed) if solvable(problem)]
    texts = write_corpus(
        problems, section.habits, documents=section.documents, drill_share=section.drill_share, seed=job.seed
    )
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], vocab_size=section.vocab_size)
    job.note(
        f"corpus of {len(texts)} documents over {len(problems)} problems, {len(tokenizer)} tokens in the vocabulary"
    )
    total = section.steps + section.student_steps
    policies = []
    summaries: dict[str, Any] = {"documents": len(texts), "corpus_problems": len(problems)}
    for name, model, steps, done in (
        ("base", section.model, section.steps, 0),
        ("student", section.student, section.student_steps, section.steps),
    ):
        policy, summary = pretrain(
            tokenizer,
            texts,
            model=model,
            steps=steps,
            section=section,
            engine=job.params.engine,
            seed=job.seed,
            log=lambda metrics, step, done=done: job.log(metrics, step=done + step, total=total),  # type: ignore[misc]
            checkpoints=job.checkpoints / name,
        )
        policies.append(policy)
        summaries[name] = {**summary, "parameters": count_parameters(policy.model)}
    return policies[0], policies[1], problems, summaries


def main() -> None:
    with open_job("base", parallel=True) as job:
        section = job.params.base
        problems: list[Problem] = []
        report: dict[str, Any]
        if isinstance(section, ScratchBase):
            policy, student, problems, report = from_scratch(job, section)
        else:
            policy, student = load_existing(section, precision=job.params.engine.precision)
            report = {
                "base": {"parameters": count_parameters(policy.model)},
                "student": {"parameters": count_parameters(student.model)},
            }
        for name, model in (("base", policy), ("base_student", student)):
            with job.publish(Path("models") / name) as folder:
                save_policy(model, folder)
        # What the base has read; stage curate keeps it out of the held-out set.
        with job.publish(Path("data/corpus")) as folder:
            write_jsonl(folder / "problems.jsonl", problems)
        job.report(report)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
