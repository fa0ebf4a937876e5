"""How far a proxy can be optimised before gold turns down: best of n and RL, from the fused model.

    python -m studies.overoptimization

Needs models/fuse and data/curated of the chain. Writes reports/studies/overoptimization.json, its curves beside it, and
docs/overoptimization.md with its picture; an MLflow run has all of them. No model is kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.files import rounded
from posttrain.job import open_job
from posttrain.records import Problem, read_jsonl
from studies.overoptimization.figure import draw
from studies.overoptimization.page import write_page
from studies.overoptimization.plan import load_study
from studies.overoptimization.study import Bench, run


def main() -> None:
    with open_job("studies/overoptimization") as job:
        study = load_study()
        job.parameters({"study": study.model_dump(mode="json")})
        report = run(
            Bench(
                params=job.params,
                study=study,
                machine=job.system,
                seed=job.seed,
                train=read_jsonl(Path("data/curated/train.jsonl"), Problem),
                heldout=read_jsonl(Path("data/curated/heldout.jsonl"), Problem),
                checkpoints=job.checkpoints,
                log=job.log,
                note=job.note,
            )
        )
        tidy = json.loads(json.dumps(rounded(report)))
        job.report(tidy)
        job.figure("curves", draw(tidy))
        write_page(tidy)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
