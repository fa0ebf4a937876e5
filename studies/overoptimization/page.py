"""The result block of docs/overoptimization.md and its picture, from the study's report alone.

python -m studies.overoptimization.page
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.arguments import no_arguments
from posttrain.evals.inputs import Source, read_source
from posttrain.evals.readme import with_block
from posttrain.files import write_atomic
from posttrain.loops.gold import GOLD
from posttrain.records import DataError
from studies.overoptimization.figure import PANELS, picture
from studies.overoptimization.study import PROXY, SECOND, SEEN

PAGE = Path("docs/overoptimization.md")
PICTURE = Path("docs/overoptimization.svg")
REPORT = Path("reports/studies/overoptimization.json")
COMMAND = "python -m studies.overoptimization"
NOTHING = f"Not run yet: `{COMMAND}`, after the chain as far as stage fuse."
HEADER = (
    "at the end of", "sqrt KL", "proxy, its prompts", "proxy, held out", "second proxy", "gold", "accuracy, %", "tokens"
)  # fmt: skip
LAW_HEADER = ("gold by the law", "alpha", "beta", "peak at KL, nats", "gain there")


def block(report: Mapping[str, Any] | None) -> str:
    """What stands between the page's markers: tables and their reading, or how to get them."""
    if report is None:
        return NOTHING
    source = Source(str(REPORT), dict(report))
    curves = {title: source.need(f"{way}.curves.{arm}") for way, arm, title in PANELS}
    parts = [
        f"![Proxy and gold against the square root of KL, one panel per way to optimise]({PICTURE.name})",
        "\n".join(f"* **{title}.** {curve['sentence']}" for title, curve in curves.items()),
        _table(HEADER, [_end(title, curve) for title, curve in curves.items()]),
        _table(LAW_HEADER, [_law(title, curve) for title, curve in curves.items()]),
        _conditions(source),
    ]
    return "\n\n".join(parts)


def write_page(report: Mapping[str, Any]) -> None:
    """Replace the block between the markers, and the picture."""
    write_atomic(PAGE, with_block(PAGE.read_text(encoding="utf-8"), block(report)))
    write_atomic(PICTURE, picture(report))


def _end(title: str, curve: Mapping[str, Any]) -> tuple[str, ...]:
    last = curve["points"][-1]
    accuracy, tokens = last.get("accuracy"), last.get("tokens")
    return (
        title,
        f"{math.sqrt(last['kl']):.2f}",
        *(_interval(last["gain"].get(name)) for name in (SEEN, PROXY, SECOND, GOLD)),
        "-" if accuracy is None else f"{100.0 * accuracy:.1f}",
        "-" if tokens is None else f"{tokens:.1f}",
    )


def _law(title: str, curve: Mapping[str, Any]) -> tuple[str, ...]:
    fit = curve["fit"]
    if fit is None:
        return title, "-", "-", "-", "-"
    beyond = fit["peak_kl"] is not None and fit["peak_kl"]["value"] > max(point["kl"] for point in curve["points"])
    return (
        title,
        _interval(fit["alpha"]),
        _interval(fit["beta"]),
        f"{_interval(fit['peak_kl'])}{' (not reached)' if beyond else ''}",
        _interval(fit["peak_gain"]),
    )


def _conditions(source: Source) -> str:
    labels = source.need(f"labels.{PROXY}")
    quality = {name: source.need(f"labels.{name}.quality.heldout.accuracy") for name in (PROXY, SECOND)}
    chosen, trained = source.need("best_of_n"), source.need("rl")
    return (
        f"Each proxy was trained on {labels['quality']['train_pairs']} pairs or about as many, of which "
        f"{100.0 * source.need('flip_rate'):.0f} % were flipped, and orders {100.0 * quality[PROXY]:.1f} % (second: "
        f"{100.0 * quality[SECOND]:.1f} %) of held-out pairs as labelled. Gains over the start on the same questions, "
        "in standard deviations of the start's samples to one prompt, [95 % bootstrap interval over questions]. Best "
        f"of n: {chosen['curves'][PROXY]['questions']} held-out questions, pools of {chosen['samples']} samples, KL "
        f"exact. RL: {trained['curves'][PROXY]['questions']} held-out questions, {trained['samples']} samples each, KL "
        "over the whole vocabulary at every token. A peak of the law is given where the interval of beta is above 0. "
        f"One seed. Written from `{REPORT}` by `{COMMAND}`."
    )


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*(value[key] for key in ("value", "low", "high")))


def main() -> int:
    try:
        write_page(dict(read_source(REPORT.parent, REPORT.name).values))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    no_arguments(__doc__)
    sys.exit(main())
