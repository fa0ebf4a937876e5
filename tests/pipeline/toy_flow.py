"""The toy chain under a flow, as a program: `python -m tests.pipeline.toy_flow [--force STAGE]`."""

from __future__ import annotations

import sys

from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.execution import open_execution, prefect_server, prepare
from flows.gates import GateFailed
from posttrain.errors import StageError

STAGES = ("a", "b", "evaluate@b")


@flow(name="toy")
def toy(force: list[str]) -> None:
    with open_execution(STAGES, force=force, tags={}) as chain:
        chain.stage("a")
        chain.stage("b")
        chain.stage("evaluate@b")


def main() -> int:
    try:
        prepare()
        with temporary_settings({PREFECT_API_URL: prefect_server()}):
            toy(sys.argv[2:])
    except (StageError, GateFailed) as error:
        print(f"The chain stopped. {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
