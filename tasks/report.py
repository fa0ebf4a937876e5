"""Stage report: all models compared, on one page that a person would rather look at than read."""

from __future__ import annotations

from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.evals import across_figures
from posttrain.evals.across import compare_models, win_matrix
from posttrain.evals.inputs import load_inputs
from posttrain.evals.page import align_curve, build_page, by_learned_rl
from posttrain.job import open_job, stage_seed


def main() -> None:
    with open_job("report") as job:
        inputs = load_inputs()
        across = compare_models(
            inputs.rows,
            draws=job.params.evaluate.bootstrap,
            bins=job.params.evaluate.ece_bins,
            seed=stage_seed(job.params.seed, "evaluate"),
        )
        page = build_page(inputs, across, prompts=job.params.report.prompts)
        with job.publish_file(Path("reports/index.html")) as file:
            file.write_text(page, encoding="utf-8")
        job.figure("win-rates", across_figures.win_matrix(win_matrix(across["win_rates"])))
        job.figure("reliability", across_figures.reliability(across["calibration"]))
        if by_learned_rl(inputs):
            job.picture("proxy-and-gold", align_curve(inputs))
        job.report(across)
        job.note("reports/index.html")


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
