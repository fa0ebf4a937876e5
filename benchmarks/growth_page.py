"""How our GRPO update grows, as a section of docs/performance.md: a figure, and a table for each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.arithmetic import exponent
from benchmarks.settings import AXES, HELD, Axis
from benchmarks.tables import table
from posttrain.evals.inputs import Source

TITLES: Mapping[Axis, str] = {
    "parameters": "model size",
    "length": "sequence length",
    "group": "group size",
    "prompts": "number of prompts",
}
VALUES: Mapping[Axis, str] = {
    "parameters": "parameters",
    "length": "tokens of prompt and response",
    "group": "responses to each prompt",
    "prompts": "prompts",
}
"""What is counted along each axis."""

SAME: Mapping[str, str] = {
    "model": "model {} of {parameters}",
    "prompts": "{:,} prompts",
    "group": "{:,} responses to each prompt",
    "prompt_tokens": "prompts of {:,} tokens",
    "response_tokens": "responses of {:,} tokens",
    "tokens": "{:,} tokens through the model",
}
"""How the fields that stay the same along an axis are said."""

READING = """\
How one optimizer step of our GRPO update on given responses grows, one thing at a time and without a peer. Every point
is a process of its own, with steps to warm up ({warmup}) and timed steps, at least {steps} of them and {seconds:g} s
together: given are the median [fastest, slowest] and the largest memory of that process. Precision {precision},
vocabulary {vocabulary:,}. Tokens: those that go through the model, a prompt once for all its responses; at most
{micro_batch_tokens:,} of them in one pass. GFLOP/s: the operations that a step needs, as above, over its seconds; the
matrix rate of the same run is {rate:,.0f} GFLOP/s. Causal attention is counted as such, but on a CPU computed over the
whole rectangle of queries and keys: long responses cost more than is counted. Dashed in the figure: the operations,
scaled to the first point."""


def growth_section(result: Source, kind: str) -> str:
    """The figure and the axes measured; `kind` is the device's."""
    keys = ("warmup", "steps", "seconds", "precision", "vocabulary", "micro_batch_tokens")
    numbers = {key: result.need(key) for key in keys} | {"rate": result.need("rate") / 1e9}
    axes = axes_of(result)
    text = f"Seconds and peak memory of a step by {', '.join(TITLES[axis] for axis in axes)}"
    parts = ["### Growth", READING.format(**numbers), f"![{text}]({figure_name(kind)})"]
    return "\n\n".join([*parts, *(axis_section(axis, points) for axis, points in axes.items())])


def figure_name(kind: str) -> str:
    """Beside the page."""
    return "growth.svg" if kind == "cpu" else f"growth-{kind}.svg"


def axes_of(result: Source) -> dict[Axis, list[dict[str, Any]]]:
    """Those measured, in their order; a file sorts them by name."""
    measured = result.need("axes")
    return {axis: measured[axis] for axis in AXES if axis in measured}


def axis_section(axis: Axis, points: Sequence[Mapping[str, Any]]) -> str:
    """What stays the same, how seconds follow operations, and the points."""
    header = (VALUES[axis], "tokens per step", "seconds", "GFLOP/s", "peak memory, GiB")
    parameters = f"{value_text('parameters', points[0]['parameters'])} parameters"
    same = ", ".join(SAME[name].format(points[0][name], parameters=parameters) for name in HELD[axis])
    power = exponent([(point["operations"], point["median"]) for point in points])
    return "\n\n".join(
        [
            f"#### {TITLES[axis]}",
            f"The same at every point: {same}. Between the two points of most operations, seconds grow as operations "
            f"to the power {power:.2f}.",
            table([header, *(row(axis, point) for point in points)]),
        ]
    )


def row(axis: Axis, point: Mapping[str, Any]) -> tuple[str, ...]:
    value = value_text(axis, point["value"])
    return (
        f"{value} ({point['model']})" if axis == "parameters" else value,
        f"{point['tokens']:,}",
        f"{point['median']:.3g} [{point['fastest']:.3g}, {point['slowest']:.3g}]",
        f"{point['operations'] / point['median'] / 1e9:,.3g}",
        f"{point['peak'] / 2**30:.2f}",
    )


def value_text(axis: Axis, value: float) -> str:
    """A point's place on its axis, as one reads it."""
    return f"{value / 1e6:.3g} M" if axis == "parameters" else f"{value:,}"
