"""python -m studies.calibration [SETTINGS]: how sure every model of the chain is, against how often it is right.

Needs models/ and data/curated of the chain. Writes reports/studies/calibration.json, two figures, and the block of
docs/calibration.md; the numbers and the figures are in MLflow too. SETTINGS: another file of numbers than params.yaml
beside this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.files import rounded
from posttrain.job import open_job
from posttrain.records import Problem, read_jsonl
from studies.calibration.figure import along_the_chain, diagrams
from studies.calibration.page import verdicts, write_page
from studies.calibration.settings import load_settings
from studies.calibration.study import run

SETTINGS = Path(__file__).with_name("params.yaml")


def main() -> None:
    with open_job("studies/calibration") as job:
        settings = load_settings(Path(sys.argv[1]) if len(sys.argv) > 1 else SETTINGS)
        job.parameters({"calibration": settings.model_dump(mode="json")})
        problems = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)[: settings.questions]
        report = rounded(run(job.params, job.system, settings, problems, seed=job.seed, note=job.note))
        job.figure("reliability", diagrams(report))
        job.figure("along-the-chain", along_the_chain(report))
        for sentence in verdicts(report):
            job.note(sentence)
        job.report(report)
        write_page(report)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
