"""The chain: from a base model to a distilled, hybrid-thinking reasoning model, on one page.

    python -m flows.post_train                    run what is not up to date
    python -m flows.post_train --stop-after grpo  and no further
    python -m flows.post_train --force sft        run sft even if nothing changed

Each line of `post_train` is a stage of dvc.yaml, run as one task. DVC skips what is up to date, so running the chain
again costs seconds; each model is evaluated as soon as it exists, so that a gate stops the chain early.
"""

from __future__ import annotations

import argparse
import sys

from prefect import flow

from flows.execution import closing_words, open_execution, run_program
from posttrain.chain import MODELS

STAGES = (
    "base", "curate", "evaluate@base", "sft", "evaluate@sft", "grade", "grpo", "evaluate@grpo", "fuse", "evaluate@fuse",
    "prefer", "reward_model", "align", "evaluate@align", "distill", "evaluate@distill", "report",
)  # fmt: skip


@flow(name="post-train")
def post_train(
    stop_after: str | None = None, force: list[str] | None = None, tags: dict[str, str] | None = None
) -> None:
    """Base model in, aligned and distilled reasoning model out; what is up to date is skipped."""
    with open_execution(STAGES, force=force or [], stop_after=stop_after, tags=tags or {}) as chain:
        chain.stage("base")  # a model that knows the facts and has mixed habits
        chain.stage("curate")  # clean, checked problems; some kept apart for evaluation
        chain.stage("evaluate@base")
        chain.stage("sft")  # long chain-of-thought cold start
        chain.stage("evaluate@sft")
        chain.stage("grade")  # pass rate = difficulty
        chain.stage("grpo")  # reinforcement learning on verifiable rewards
        chain.stage("evaluate@grpo")
        chain.stage("fuse")  # thinking and not thinking in one model
        chain.stage("evaluate@fuse")
        chain.stage("prefer")  # preference pairs from a judge
        chain.stage("reward_model")  # what the pairs say, as a model
        chain.stage("align")  # preferences into the policy
        chain.stage("evaluate@align")
        chain.stage("distill")  # a student of a third of the size
        chain.stage("evaluate@distill")
        chain.stage("report")
    closing_words(chain.context.display, MODELS)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the chain; what is up to date is skipped.")
    parser.add_argument("--stop-after", choices=STAGES, metavar="STAGE", help="the last stage to run")
    parser.add_argument("--force", nargs="+", choices=STAGES, default=[], metavar="STAGE", help="run even if unchanged")
    arguments = parser.parse_args()
    return run_program(
        lambda: post_train(arguments.stop_after, arguments.force),
        stopped="The chain stopped.",
        interrupted="the next run continues from the last checkpoint.",
    )


if __name__ == "__main__":
    sys.exit(main())
