"""Stage evaluate@MODEL: the same suite, questions and sampling seeds for every model of the chain."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.chain import MODELS, previous_model
from posttrain.engine.policy import count_parameters, load_policy
from posttrain.engine.rollout import make_engine
from posttrain.evals.measure import evaluate_model
from posttrain.evals.rows import read_rows, write_rows
from posttrain.evals.suite import summarise
from posttrain.job import open_job
from posttrain.loops.verification import verify
from posttrain.records import Problem, read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=MODELS)
    name = parser.parse_args().model
    with open_job(f"evaluate@{name}", parallel=True) as job:
        section = job.params.evaluate
        policy = load_policy(Path("models") / name, precision=job.params.engine.precision)
        problems = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        engine = make_engine(policy, job.params.engine, job.system)
        rows = evaluate_model(
            policy.tokenizer,
            engine,
            problems,
            section,
            seed=job.seed,
            verify=verify,
            base=name == "base",
            note=job.note,
        )
        engine.close()
        before = previous_model(name)
        result = summarise(
            rows,
            model=name,
            parameters=count_parameters(policy.model),
            pass_at=section.pass_at,
            bootstrap=section.bootstrap,
            ece_bins=section.ece_bins,
            seed=job.seed,
            previous=None if before is None else (before, read_rows(Path(f"data/evaluations/{before}.jsonl"))),
        )
        with job.publish_file(Path(f"data/evaluations/{name}.jsonl")) as file:
            write_rows(file, rows)
        job.table(
            "samples", [{"prompt": r.prompt, "think": r.think.text, "no_think": r.no_think.text} for r in rows[:20]]
        )
        job.report(result)


if __name__ == "__main__":
    main()
