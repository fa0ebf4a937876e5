"""python -m studies.process [SETTINGS]: train, measure, write reports/studies/process.json and the docs page's block.

SETTINGS: another file of numbers than params.yaml beside this one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from posttrain import system
from posttrain.config import ConfigError, load_params
from posttrain.engine.policy import load_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.files import rounded, write_atomic
from posttrain.records import DataError, Problem, read_jsonl
from studies.process.page import write_page
from studies.process.settings import load_settings
from studies.process.study import Study

SETTINGS = Path(__file__).with_name("params.yaml")
REPORT = Path("reports/studies/process.json")
PAGE = Path("docs/process_rewards.md")


def main() -> int:
    machine = system.load_system()
    system.apply_environment(machine)
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"process: {time.monotonic() - started:5.0f} s  {text}", flush=True)

    try:
        settings = load_settings(Path(sys.argv[1]) if len(sys.argv) > 1 else SETTINGS)
        params = load_params()
        policy = load_policy(Path(settings.policy), precision=params.engine.precision)
        train, heldout = (read_jsonl(Path(path), Problem) for path in (settings.train, settings.heldout))
        rollouts = make_engine(policy, params.engine, machine)
        try:
            report = Study(settings, policy, rollouts, params.engine, note).run(train, heldout)
        finally:
            rollouts.close()
        tidy = rounded(report)
        write_atomic(REPORT, json.dumps(tidy, indent=2, sort_keys=True) + "\n")
        write_page(PAGE, tidy)
    except (ConfigError, DataError, StageError) as error:
        print(f"process: {error}", file=sys.stderr)
        return 2
    note(f"{REPORT} and {PAGE} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
