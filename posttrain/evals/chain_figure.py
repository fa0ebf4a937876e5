"""The chain as one wide picture for the README: a box per model with what its stage did to accuracy and length.

Plain SVG text, from the numbers of reports/evaluate/*.json alone: equal numbers give equal bytes. Every word stands on
a box of its own ground, and both change colour together with the reader's light or dark scheme, so that the picture can
be read on any page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.chain import MODELS
from posttrain.evals.formats import interval, millions, number, percent
from posttrain.evals.inputs import Source

WAYS = {
    "base": "pre-trained",
    "sft": "cold start on few traces",
    "grpo": "right, then short",
    "fuse": "two modes in one",
    "align": "preferences",
    "distill": "a smaller student",
}
"""How each model was made."""

BOX, HEIGHT, GAP, PAD = 168, 214, 24, 13
"""Width and height of a box, the space between two boxes, and the margin within one (user units)."""

STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2a37 }
    .name { font-size: 18px; font-weight: 700 }
    .number { font-size: 14px; font-weight: 600 }
    .label { font-size: 12px; fill: #57626f }
    .box { fill: #ffffff; stroke: #c3cad3 }
    .track { fill: #e9edf2 }
    .think { fill: #2460d8 }
    .direct { fill: #d9650f }
    .whisker { stroke: #1f2a37; stroke-width: 1.5 }
    .arrow { fill: none; stroke: #8b949e; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .label { fill: #9aa6b2 }
      .box { fill: #161b22; stroke: #3d4650 }
      .track { fill: #2a323b }
      .think { fill: #6f9bff }
      .direct { fill: #f0883e }
      .whisker { stroke: #e6edf3 }
    }
"""


def chain_svg(evaluations: Mapping[str, dict[str, Any]]) -> str:
    """The models of the chain that were evaluated, in its order, with arrows between them.

    `evaluations`: model name -> content of its reports/evaluate/<model>.json; a missing key raises DataError naming
    file and key.
    """
    reports = [Source(f"reports/evaluate/{name}.json", evaluations[name]) for name in MODELS if name in evaluations]
    width = max(0, len(reports) * (BOX + GAP) - GAP)
    parts = [_box(report, place * (BOX + GAP)) for place, report in enumerate(reports)]
    parts += [_arrow(place * (BOX + GAP) - GAP) for place in range(1, len(reports))]
    title = "The chain: accuracy with and without thinking, tokens per right answer and parameters of each model"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width + 2} {HEIGHT + 2}" role="img">'
    return "\n".join([head, f"  <title>{title}</title>", f"  <style>{STYLE}  </style>", *parts, "</svg>\n"])


def _box(report: Source, left: int) -> str:
    """A model: name, accuracy in both modes with its 95 % interval, tokens per right answer, parameters."""
    model = str(report.need("model"))
    tokens, parameters = report.need("think.tokens_mean_correct"), report.need("parameters")
    lines = [
        f'  <g transform="translate({left} 0)">',
        f'    <rect class="box" width="{BOX}" height="{HEIGHT}" rx="8"/>',
        _text("name", PAD, 28, model),
        _text("label", PAD, 46, WAYS[model]),
        *_bar("think", "thinking", report.need("think.avg"), 72),
        *_bar("direct", "no thinking", report.need("no_think.avg"), 116),
        _text("number", PAD, 164, number(tokens)),
        _text("label", BOX - PAD, 164, "tokens if right", end=True),
        _text("number", PAD, 194, f"{parameters:,}" if parameters < 1e7 else millions(parameters)),
        _text("label", BOX - PAD, 194, "parameters", end=True),
        "  </g>",
    ]
    return "\n".join(lines)


def _bar(kind: str, label: str, accuracy: Mapping[str, float], top: int) -> list[str]:
    """Label and number above a bar from 0 to 100 %, with a whisker over the interval."""
    full = BOX - 2 * PAD
    low, high = (PAD + full * accuracy[side] for side in ("low", "high"))
    return [
        _text("label", PAD, top, label),
        _text("number", BOX - PAD, top, percent(accuracy["value"]), end=True),
        f'    <rect class="track" x="{PAD}" y="{top + 7}" width="{full}" height="10" rx="2"/>',
        f'    <rect class="{kind}" x="{PAD}" y="{top + 7}" width="{full * accuracy["value"]:.2f}" height="10" rx="2">'
        f"<title>{label}: 95 % interval {interval(accuracy)}</title></rect>",
        f'    <path class="whisker" d="M{low:.2f} {top + 12}H{high:.2f}"/>',
    ]


def _text(kind: str, x: int, y: int, words: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'    <text class="{kind}" x="{x}" y="{y}"{anchor}>{words}</text>'


def _arrow(left: int) -> str:
    """From one box to the next, through the gap that begins at `left`."""
    middle, tip = HEIGHT // 2, left + GAP - 4
    head = f"M{tip - 6} {middle - 5}L{tip} {middle}L{tip - 6} {middle + 5}"
    return f'  <path class="arrow" d="M{left + 4} {middle}H{tip}{head}"/>'
