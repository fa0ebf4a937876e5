"""docs/preferences.md from the arms' reports.

    python -m studies.preferences.page

No number on the page is typed. Without reports there is a page without numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.config import ConfigError
from posttrain.evals.inputs import Source, read_source
from posttrain.files import write_atomic
from posttrain.records import DataError
from studies.arms import refuse_unlike
from studies.preferences.plan import load_study

REPORTS = Path("reports/studies/preferences")
PAGE = Path("docs/preferences.md")
COMMAND = "python -m studies.preferences.page"
HEADER = (
    "method", "learning rate", "win rate over fuse, %", "by right / script / length", "accuracy, %",
    "against fuse, points", "tokens", "KL, nats",
)  # fmt: skip

INTRODUCTION = """\
# preferences: every method of stage align from the same start

Each method of stage [align](align.md) trains `models/fuse` and is then asked the held-out questions, thinking. Those
that learn from pairs have the pairs of `data/preferences`, as often and in batches of the same size; `ppo` and
`grpo_rm` ([overoptimization](overoptimization.md)) have the score of `models/reward_model`, which was trained on the
same pairs, and sample for themselves. No arm gets fresh labels.

    make preferences    # the chain as far as it is needed, each arm that is not up to date, this page

Each arm is a stage of `studies/preferences/dvc.yaml`: an interrupted study goes on where it stopped, and a change of an
arm's numbers runs that arm again. They stand in `studies/preferences/params.yaml`, with a learning rate per arm."""


def build(arms: Mapping[str, Source], names: Sequence[str]) -> str:
    """The page; `arms`: method -> its report, `names`: the methods of the study."""
    refuse_strangers(arms, names)
    parts = [INTRODUCTION, *([results(arms)] if arms else [])]
    if missing := [name for name in names if name not in arms]:
        parts.append(
            f"Not run yet: {', '.join(missing)}. `make preferences` runs what is missing and writes this page."
        )
    return "\n\n".join(parts) + "\n"


def refuse_strangers(arms: Mapping[str, Source], names: Sequence[str]) -> None:
    """Reports of methods that the study has not, and arms that cannot share a table."""
    if strange := sorted(set(arms) - set(names)):
        raise DataError(f"{REPORTS}: got '{strange[0]}', wanted one of {', '.join(names)}")
    refuse_unlike(arms, ("questions", "samples", "fuse"), wanted="the same start and questions; run `make preferences`")


def results(arms: Mapping[str, Source]) -> str:
    """Table with its conditions, by win rate, the best first."""
    order = sorted(arms.values(), key=lambda arm: (-arm.need("win_rate.value"), arm.need("method")))
    some = order[0]
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), start_row(some), *map(arm_row, order)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    machines = sorted({f"{arm.need('machine.cores')} cores, torch {arm.need('machine.torch')}" for arm in order})
    return (
        f"## Results\n\n{table}\n\n{some.need('questions')} held-out questions, {some.need('samples')} answers each "
        "with the same draws, [95 % bootstrap interval over questions]. Win rate: as the world's judge, without its "
        "noise, has it, every answer against every answer of the fused model to the same question, ties half; *by*: "
        "the share of these comparisons that being right, one script, or length decided. *Against fuse*: the paired "
        "difference of the accuracies, question by question. Tokens per answer. KL to fuse per response: over the "
        "whole vocabulary, on these answers. Measured on "
        f"{' and on '.join(machines)}. One seed: a rank between overlapping intervals says nothing. Written from "
        f"`{REPORTS}/*.json` by `{COMMAND}`."
    )


def start_row(arm: Source) -> tuple[str, ...]:
    return ("fuse", "-", "50.0", "-", shares(arm, "fuse.accuracy"), "-", tokens(arm, "fuse"), "0.00")


def arm_row(arm: Source) -> tuple[str, ...]:
    decided = (f"{100 * arm.need(f'win_rate.by_{level}'):.0f}" for level in ("correct", "script", "length"))
    return (
        str(arm.need("method")),
        f"{arm.need('learning_rate'):.1e}",
        shares(arm, "win_rate"),
        " / ".join(decided),
        shares(arm, "end.accuracy"),
        shares(arm, "difference.accuracy", sign="+"),
        tokens(arm, "end"),
        f"{arm.need('kl'):.2f}",
    )


def shares(arm: Source, path: str, *, sign: str = "") -> str:
    value, low, high = (100 * arm.need(f"{path}.{key}") for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def tokens(arm: Source, side: str) -> str:
    value, low, high = (arm.need(f"{side}.tokens.{key}") for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def read_arms(folder: Path) -> dict[str, Source]:
    """Method -> its report; empty where there are none."""
    return {
        path.stem: Source(str(path), read_source(folder, path.name).values) for path in sorted(folder.glob("*.json"))
    }


def main() -> int:
    try:
        arms = read_arms(REPORTS)
        write_atomic(PAGE, build(arms, list(load_study().arms)))
    except (ConfigError, DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{PAGE}: {len(arms)} methods")
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
