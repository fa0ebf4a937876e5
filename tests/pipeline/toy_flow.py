"""The toy chain under a flow, as a program: `python -m tests.pipeline.toy_flow [--force STAGE]`."""

from __future__ import annotations

import sys

from prefect import flow

from flows.execution import open_execution, run_program

STAGES = ("a", "b", "evaluate@b")


@flow(name="toy")
def toy(force: list[str]) -> None:
    with open_execution(STAGES, force=force, tags={}) as chain:
        chain.stage("a")
        chain.stage("b")
        chain.stage("evaluate@b")


def main() -> int:
    return run_program(lambda: toy(sys.argv[2:]), stopped="The chain stopped.", interrupted="")


if __name__ == "__main__":
    sys.exit(main())
