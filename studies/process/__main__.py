"""python -m studies.process [SETTINGS]: train, measure, write reports/studies/process.json and the docs page's block.

The process reward models are saved to the folder that the settings name. SETTINGS: another file of numbers than
params.yaml beside this one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from posttrain import system
from posttrain.arguments import no_arguments
from posttrain.config import ConfigError, load_params
from posttrain.engine.policy import Policy, load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.files import fsync_tree, remove, rounded, write_atomic
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
            study = Study(settings, policy, rollouts, params.engine, note)
            report = study.run(train, heldout)
        finally:
            rollouts.close()
        for label, model in study.models.items():
            save_whole(Policy(model, policy.tokenizer), Path(settings.models) / label)
        tidy = rounded(report)
        write_atomic(REPORT, json.dumps(tidy, indent=2, sort_keys=True) + "\n")
        write_page(PAGE, tidy)
    except (ConfigError, DataError, StageError) as error:
        print(f"process: {error}", file=sys.stderr)
        return 2
    note(f"{REPORT}, {PAGE} and {settings.models} written")
    return 0


def save_whole(policy: Policy, folder: Path) -> None:
    """In the place of what was there, once it is whole."""
    fresh = folder.with_name(f".{folder.name}.partial")
    remove(fresh)
    save_policy(policy, fresh)
    fsync_tree(fresh)
    remove(folder)
    fresh.rename(folder)


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
