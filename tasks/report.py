"""Stage report: one page that a person would rather look at than read."""

from __future__ import annotations

from pathlib import Path

from posttrain.evals.inputs import load_inputs
from posttrain.evals.page import build_page
from posttrain.job import open_job


def main() -> None:
    with open_job("report") as job:
        page = build_page(load_inputs(), prompts=job.params.report.prompts)
        with job.publish_file(Path("reports/index.html")) as file:
            file.write_text(page, encoding="utf-8")
        job.note("reports/index.html")


if __name__ == "__main__":
    main()
