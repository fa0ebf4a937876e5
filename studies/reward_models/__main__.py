"""How much a reward model gains from a larger body and from more pairs, in one run.

    python -m studies.reward_models

Needs data/preferences of the chain and the models of `bodies` in params.yaml beside this file. Writes
reports/studies/reward_models.json and the table in docs/reward_models.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.boundary import WORK
from posttrain.config import ConfigError, load_params
from posttrain.errors import StageError
from posttrain.files import rounded, write_atomic
from posttrain.loops.pairs import check_pairs
from posttrain.records import DataError, Pair, read_jsonl
from posttrain.system import apply_environment, load_system
from studies.reward_models.matrix import Bench, run
from studies.reward_models.page import REPORT, write_page
from studies.reward_models.plan import load_study


def open_bench() -> Bench:
    """Everything that is read, before anything is trained."""
    apply_environment(load_system())
    params, study = load_params(), load_study()
    pairs = read_jsonl(Path(study.pairs), Pair)
    check_pairs(pairs, study.pairs)
    work = WORK / "studies/reward_models"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started = time.monotonic()
    return Bench(
        study=study,
        engine=params.engine,
        train=[pair for pair in pairs if pair.split == "train"],
        heldout=[pair for pair in pairs if pair.split == "heldout"],
        work=work,
        note=lambda text: print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True),
    )


def main() -> int:
    try:
        bench = open_bench()
        report = rounded(run(bench))
        write_atomic(REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        write_page(report)
    except (ConfigError, DataError, StageError) as error:
        print(error, file=sys.stderr)
        return 2
    shutil.rmtree(bench.work)
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
