"""The table of results in README.md and the picture above it, written from reports/evaluate/*.json.

    python -m posttrain.evals.readme

A number in the README is never typed: a test compares the block between the markers, and docs/chain.svg, with what the
reports say. Without reports there is no picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.arguments import no_arguments
from posttrain.chain import MODELS
from posttrain.evals.chain_figure import chain_svg
from posttrain.evals.inputs import Source, read_source
from posttrain.files import write_atomic
from posttrain.records import DataError

README = Path("README.md")
PICTURE = Path("docs/chain.svg")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
COMMAND = "python -m posttrain.evals.readme"
NOTHING = f"run `make run` and `{COMMAND}`"
"""Content of the block while there are no reports."""

HEADER = (
    "model", "parameters", "think accuracy, %", "no-think accuracy, %", "tokens right/all", "language mixing, %",
    "mode following, %", "ECE",
)  # fmt: skip


def results_table(evaluations: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: one row per model, those of the chain first and in its order; accuracies are avg@k [95 % interval].

    Tokens per answer, language mixing and ECE are those of thinking. `evaluations`: model name -> content of its
    reports/evaluate/<model>.json; a missing key raises DataError naming file and key.
    """
    order = [model for model in MODELS if model in evaluations]
    order += sorted(set(evaluations) - set(MODELS))
    rows = [_row(Source(f"reports/evaluate/{model}.json", evaluations[model])) for model in order]
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def results_block(evaluations: Mapping[str, dict[str, Any]]) -> str:
    """What stands between the markers: the table with its conditions, or what to do to get one."""
    if not evaluations:
        return NOTHING
    sizes = {(values.get("questions"), values.get("samples")) for values in evaluations.values()}
    if len(sizes) > 1:
        raise DataError(f"reports/evaluate: got (questions, samples) {sorted(map(str, sizes))}, wanted the same in all")
    ((questions, samples),) = sizes
    conditions = (
        f"{questions} held-out questions, {samples} samples each; [95 % bootstrap interval over questions]; tokens, "
        f"language mixing and ECE with thinking. Written from `reports/evaluate/*.json` by `{COMMAND}`."
    )
    return f"{results_table(evaluations)}\n\n{conditions}"


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """Model name -> its report; empty where there are none."""
    return {path.stem: dict(read_source(folder, path.name).values) for path in sorted(folder.glob("*.json"))}


def block_of(readme: str) -> str:
    """The text between the markers; raises DataError where they are not there once each, in order."""
    return _split(readme)[1].strip()


def with_block(readme: str, block: str) -> str:
    """The README with another block."""
    before, _, after = _split(readme)
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _split(readme: str) -> tuple[str, str, str]:
    before, begin, rest = readme.partition(BEGIN)
    block, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise DataError(f"README.md: wanted the markers {BEGIN} and {END}, once each and in this order")
    return before, block, after


def _row(report: Source) -> tuple[str, ...]:
    right, every = (report.need(f"think.{name}") for name in ("tokens_mean_correct", "tokens_mean"))
    return (
        str(report.need("model")),
        f"{report.need('parameters'):,}",
        _interval(report.need("think.avg")),
        _interval(report.need("no_think.avg")),
        f"{_number(right)} / {_number(every)}",
        _percent(report.need("think.language_mixing")),
        _percent(report.need("mode_following")),
        f"{report.need('think.ece'):.3f}",
    )


def _interval(value: Mapping[str, float]) -> str:
    return f"{_percent(value['value'])} [{_percent(value['low'])}, {_percent(value['high'])}]"


def _percent(value: float | None) -> str:
    """`-` for what a model has not: a base model knows no flags."""
    return "-" if value is None else f"{100.0 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> int:
    try:
        text = README.read_text(encoding="utf-8")
        evaluations = read_evaluations(Path("reports/evaluate"))
        block = results_block(evaluations)
        write_atomic(README, with_block(text, block))
        if evaluations:
            write_atomic(PICTURE, chain_svg(evaluations))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(block)
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
