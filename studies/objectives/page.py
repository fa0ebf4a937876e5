"""docs/objectives.md and docs/objectives.svg from the arms' reports, the objectives' files and notes.yaml.

    python -m studies.objectives.page

Nothing on the page is typed but the remark and the reasons in notes.yaml. Without reports there is a page without
numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.config import ConfigError, Section, parse_section, read_mapping
from posttrain.evals.inputs import Source, read_source
from posttrain.files import write_atomic
from posttrain.records import DataError
from studies.arms import refuse_unlike
from studies.objectives.axes import changes, describe
from studies.objectives.figure import picture

REPORTS = Path("reports/studies/objectives")
OBJECTIVES = Path("objectives")
NOTES = Path("studies/objectives/notes.yaml")
PAGE = Path("docs/objectives.md")
PICTURE = Path("docs/objectives.svg")
NEIGHBOUR = "grpo"
"""What every method is compared with, axis by axis."""

COMMAND = "python -m studies.objectives.page"
HEADER = (
    "objective", "learning rate", "accuracy, %", "above sft", "against sft, points", "tokens right / wrong",
    "KL, nats", "entropy, nats", "responses", "tokens, thousands", "seconds",
)  # fmt: skip


def build(arms: Mapping[str, Source], notes: Mapping[str, str], objectives: Path, *, remark: str = "") -> str:
    """The page; `arms`: objective -> its report, `remark`: what a reader of its numbers has to know besides."""
    names = sorted(path.stem for path in objectives.glob("*.yaml"))
    refuse_strangers(arms, notes, names)
    parts = ["# objectives: every published method from the same start", INTRODUCTION]
    if arms:
        parts += [results(arms), *([remark] if remark else []), reasons(arms, notes)]
    missing = [name for name in names if name not in arms]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}. `make objectives` runs what is missing and writes this page.")
    parts += [f"## What each method is, and what it changes in `{NEIGHBOUR}`", METHODS]
    parts.append(
        "\n".join(method_line(objectives / f"{name}.yaml", objectives / f"{NEIGHBOUR}.yaml") for name in names)
    )
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
One loop, one start, one budget: each file of `objectives/` trains `models/sft` on `data/graded` with the same prompts
per step, group, steps, token limit and reward terms (but for the terms that a file states itself), exactly as stage
[grpo](grpo.md) does, and is then asked the held-out questions, thinking. How often a method trains on what it sampled
(`epochs`, `minibatches`) is its own. `rft` draws as many samples, to the nearest whole one per problem, before its
first step; `dapo` draws more where groups teach nothing.

    make objectives    # the chain as far as it is needed, each arm that is not up to date, this page

Each arm is a stage of `studies/objectives/dvc.yaml`: an interrupted study goes on where it stopped, and after a change
only the arms that read it run again. What differs from `params.yaml` stands in `studies/objectives/params.yaml`: fewer
steps, and a learning rate per arm, since one rate for all would favour the objectives whose gradients happen to suit
it."""

METHODS = """\
Read from the files themselves: their first line, and the keys in which they differ (what a method leaves out, such as
the bounds of a clip it has not, is no difference)."""


def refuse_strangers(arms: Mapping[str, Source], notes: Mapping[str, str], names: Sequence[str]) -> None:
    """Reports and notes of objectives that are not there, and arms that cannot share a table."""
    for place, known in ((REPORTS, arms), (NOTES, notes)):
        if strange := sorted(set(known) - set(names)):
            raise DataError(f"{place}: got '{strange[0]}', wanted one of {', '.join(names)}")
    refuse_unlike(
        arms, ("budget", "questions", "samples", "sft"), wanted="the same start and budget; run `make objectives`"
    )


def ranked(arms: Mapping[str, Source]) -> list[Source]:
    """By accuracy, the best first."""
    return sorted(arms.values(), key=lambda arm: (-arm.need("end.accuracy.value"), arm.need("objective")))


def results(arms: Mapping[str, Source]) -> str:
    """Table with its conditions, and the picture."""
    order = ranked(arms)
    some = order[0]
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), start_row(some), *map(arm_row, order)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    budget = Source(some.file, some.need("budget"))
    machines = sorted({f"{arm.need('machine.cores')} cores, torch {arm.need('machine.torch')}" for arm in order})
    conditions = (
        f"{budget.need('steps')} steps of {budget.need('prompts_per_step')} prompts x {budget.need('group_size')} "
        f"samples, at most {budget.need('generation.max_new_tokens')} tokens each. Accuracy: "
        f"{some.need('questions')} held-out questions, {some.need('samples')} samples each, [95 % bootstrap interval "
        "over questions]; *above sft*: the two intervals do not meet; *against sft*: the paired difference, question "
        "by question. KL to sft per response and entropy per token: over the whole vocabulary, on held-out questions, "
        "at the end. Responses, tokens and seconds are those of the training, sampling included, looks at the "
        f"held-out questions not. Measured on {' and on '.join(machines)}. One seed: a rank between overlapping "
        f"intervals says nothing. Written from `{REPORTS}/*.json` by `{COMMAND}`."
    )
    return (
        f"## Results\n\n{table}\n\n{conditions}\n\n![Held-out accuracy over the steps, one panel per objective]"
        f"({PICTURE.name})\n\nHeld-out accuracy during training, from fewer samples than the table's. Blue: the "
        "objective of the panel; pale: the others; dashed: sft. Steps in percent of an arm's own: those of "
        "`rft` are of another kind."
    )


def start_row(arm: Source) -> tuple[str, ...]:
    sft = Source(arm.file, arm.need("sft"))
    return ("sft", "-", accuracy(sft), "-", "-", lengths(sft), "0.00", f"{sft.need('entropy'):.3f}", "-", "-", "-")


def arm_row(arm: Source) -> tuple[str, ...]:
    end = Source(arm.file, arm.need("end"))
    gap = arm.need("difference")
    return (
        str(arm.need("objective")),
        f"{arm.need('learning_rate'):.1e}",
        accuracy(end),
        "yes" if is_above(arm) else "no",
        f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]",
        lengths(end),
        f"{end.need('kl'):.2f}",
        f"{end.need('entropy'):.3f}",
        f"{arm.need('cost.responses'):,.0f}",
        f"{arm.need('cost.tokens') / 1000:,.0f}",
        f"{arm.need('cost.seconds'):.0f}",
    )


def accuracy(side: Source) -> str:
    value, low, high = (100 * side.need(f"accuracy.{key}") for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def lengths(side: Source) -> str:
    """Mean tokens of right and of wrong answers; `-` where there is none."""
    means = (side.need(f"tokens_{kind}") for kind in ("correct", "wrong"))
    return " / ".join("-" if mean is None else f"{mean:.1f}" for mean in means)


def is_above(arm: Source) -> bool:
    """Improved on sft with intervals apart."""
    return bool(arm.need("end.accuracy.low") > arm.need("sft.accuracy.high"))


def reasons(arms: Mapping[str, Source], notes: Mapping[str, str]) -> str:
    """Why, for each arm that is not above sft; nothing where all are."""
    below = [str(arm.need("objective")) for arm in ranked(arms) if not is_above(arm)]
    title = "## Which do not improve on sft here, and why"
    if not below:
        return f"{title}\n\nNone: every interval is above that of sft."
    return "\n\n".join([title, *(f"**{name}**. {notes.get(name, UNEXPLAINED)}" for name in below)])


UNEXPLAINED = f"No reason known yet; it belongs into `{NOTES}`."


def method_line(path: Path, neighbour: Path) -> str:
    """`* **name**: what it is. Changes: ...`"""
    line = f"* **{path.stem}**: {describe(path)}"
    if path == neighbour:
        return line
    found = changes(path, neighbour)
    return f"{line}\n  Changes " + (", ".join(f"`{change}`" for change in found) if found else "nothing") + "."


class Notes(Section):
    """The whole of notes.yaml."""

    remark: str
    """On the run as a whole; may be empty."""
    reasons: dict[str, str]
    """Objective -> why it does not improve on sft at this scale."""


def read_notes(path: Path) -> tuple[str, dict[str, str]]:
    """The remark and the reasons, each on one line; raises ConfigError for an empty reason."""
    notes = parse_section(Notes, read_mapping(path), str(path))
    if empty := [name for name, text in notes.reasons.items() if not text.strip()]:
        raise ConfigError(f"{path}: reasons.{empty[0]}: got nothing, wanted: a sentence that says why")
    return " ".join(notes.remark.split()), {name: " ".join(text.split()) for name, text in notes.reasons.items()}


def read_arms(folder: Path) -> dict[str, Source]:
    """Objective -> its report; empty where there are none."""
    return {
        path.stem: Source(str(path), read_source(folder, path.name).values) for path in sorted(folder.glob("*.json"))
    }


def curves_of(arms: Mapping[str, Source]) -> dict[str, list[tuple[float, float]]]:
    """Objective -> its (share of its steps, held-out accuracy), in the order of the table."""
    curves = {str(arm.need("objective")): arm.need("curve") for arm in ranked(arms)}
    return {
        name: [(look["step"] / looks[-1]["step"], look["accuracy"]) for look in looks] for name, looks in curves.items()
    }


def main() -> int:
    try:
        arms, (remark, notes) = read_arms(REPORTS), read_notes(NOTES)
        write_atomic(PAGE, build(arms, notes, OBJECTIVES, remark=remark))
        if arms:
            start = next(iter(arms.values())).need("sft.accuracy.value")
            write_atomic(PICTURE, picture(curves_of(arms), start=start))
    except (ConfigError, DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    silent = [name for name, arm in arms.items() if not is_above(arm) and name not in notes]
    print(f"{PAGE} and {PICTURE}: {len(arms)} objectives")
    if silent:
        print(f"not above sft, and no reason in {NOTES}: {', '.join(silent)}")
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
