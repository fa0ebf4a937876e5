import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from posttrain.evals import across_figures, figures
from posttrain.evals.figures import Line
from posttrain.evals.intervals import Interval

STEPS = [float(i) for i in range(30)]
BARS = [
    {"confidence": 0.1, "accuracy": 0.2, "low": 0.1, "high": 0.3, "count": 40},
    {"confidence": 0.9, "accuracy": 0.8, "low": 0.7, "high": 0.9, "count": 90},
]
DIAGRAM = {"reliability": BARS, "ece_equal_mass": {"value": 0.1, "low": 0.05, "high": 0.154}}
WINS = {
    "sft": {"sft": Interval(0.5, 0.5, 0.5), "grpo": Interval(0.2, 0.1, 0.3)},
    "grpo": {"sft": Interval(0.8, 0.7, 0.9), "grpo": Interval(0.5, 0.5, 0.5)},
}
POINTS = [{"tokens": t, "accuracy": a, "low": a - 0.03, "high": a + 0.03} for t, a in ((0, 0.3), (8, 0.4), (64, 0.8))]
LOOKS = [{"step": s, "accuracy": 0.8, "tokens_correct": 40.0} for s in (0, 10, 30)]


def every_figure() -> dict[str, Figure]:
    wave = [float(np.sin(step)) for step in STEPS]
    gaps = [value if step % 3 else float("nan") for step, value in zip(STEPS, wave, strict=True)]
    curve = {"step": STEPS, "reward/accuracy": wave, "length/correct": wave, "length/wrong": [float("nan")] * 30}
    journey = [{"model": m, "tokens": 40.0, "accuracy": 0.5, "low": 0.4, "high": 0.6} for m in ("sft", "grpo", "fuse")]
    return {
        "curves": figures.curves(STEPS, [Line("a", wave, "blue"), Line("b", gaps, "red")], unit="x", percent=True),
        "length": figures.length_and_accuracy(LOOKS, start=10, curve=curve),
        "looks": figures.length_and_accuracy(LOOKS, start=10),
        "rates": figures.pass_rate_histogram({str(k): 10 * k for k in range(9)}, kept=(0.05, 0.95)),
        "without": figures.length_and_accuracy(LOOKS, start=None, curve=curve),
        "reliability": across_figures.reliability(dict.fromkeys(("base", "sft", "grpo", "align"), DIAGRAM)),
        "wins": across_figures.win_matrix(WINS),
        "budgets": figures.budgets({"fuse": POINTS}, ("blue",)),
        "journey": figures.journey(journey),
        "domains": figures.domains(
            {"sft": {"sums": {"value": 0.4}}, "grpo": {"sums": {"value": 0.8}}}, ("blue", "red")
        ),
    }


@pytest.mark.parametrize("name", sorted(every_figure()))
def test_svg_is_whole_inline_and_the_same_each_time(name: str) -> None:
    first, second = (figures.inline_svg(every_figure()[name], name, description='a < b & "c"') for _ in range(2))
    assert first == second
    ElementTree.fromstring(first)
    assert first.startswith('<svg role="img" aria-label="a &lt; b &amp; &quot;c&quot;"')
    assert "metadata" not in first
    assert not re.search(r'^<svg[^>]* (width|height)="', first)
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert len(ids) == len(set(ids))
    assert all(identity.startswith(f"{name}-") for identity in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= set(ids)
    assert all(reference in ids for reference in re.findall(r'xlink:href="#([^"]+)"', first))


@pytest.mark.parametrize("name", sorted(every_figure()))
def test_colours_are_variables_of_the_page(name: str) -> None:
    svg = figures.inline_svg(every_figure()[name], name, description="")
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert set(re.findall(r"var\(--fig-([a-z]+)\)", svg)) <= set(figures.PALETTE)


def test_palette_has_no_colour_twice() -> None:
    assert len(set(figures.PALETTE.values())) == len(figures.PALETTE)


def test_moving_average_by_hand() -> None:
    smooth = figures.moving_average([1.0, 3.0, float("nan"), 5.0], window=3)
    assert smooth.tolist() == [2.0, 2.0, 4.0, 5.0]
    assert figures.moving_average([1.0, 2.0], window=1).tolist() == [1.0, 2.0]


def test_cells_say_who_wins_and_have_no_colour_where_nothing_was_found() -> None:
    axes = across_figures.win_matrix(WINS).axes[0]
    assert [text.get_text() for text in axes.texts] == ["20", "10\N{EN DASH}30", "80", "70\N{EN DASH}90"]
    lost, won = (patch for patch in axes.patches if patch.get_fill())
    assert (lost.get_facecolor()[:3], won.get_facecolor()[:3]) == (
        to_rgb(figures.PALETTE["orange"]),
        to_rgb(figures.PALETTE["blue"]),
    )
    even = {"a": {"b": Interval(0.52, 0.49, 0.55)}, "b": {"a": Interval(0.48, 0.45, 0.51)}}
    cells = [patch for patch in across_figures.win_matrix(even).axes[0].patches if patch.get_fill()]
    assert [patch.get_alpha() for patch in cells] == [0.0, 0.0]


def test_diagrams_name_model_and_error_and_leave_no_empty_one() -> None:
    figure = across_figures.reliability(dict.fromkeys(("base", "sft", "grpo", "align"), DIAGRAM))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").strip() for axes in shown] == ["base", "sft", "grpo", "align"]
    assert {axes.texts[0].get_text() for axes in shown} == {"ECE 0.10 (0.05\N{EN DASH}0.15)"}


def test_histogram_names_what_leaves() -> None:
    figure = figures.pass_rate_histogram({"0": 5, "1": 6, "2": 7}, kept=(0.05, 0.95))
    words = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert words == ["0\nimpossible", "1", "2\ntrivial"]


def test_end_labels_keep_their_order_and_do_not_touch() -> None:
    lines = [Line(name, [0.0, value], "blue") for name, value in (("a", 0.50), ("b", 0.51), ("c", 1.0))]
    axes = figures.curves([0, 1], lines, unit="x").axes[0]
    heights = {text.get_text(): text.xy[1] for text in axes.texts}  # type: ignore[attr-defined]
    low, high = axes.get_ylim()
    assert heights["b"] - heights["a"] >= 0.08 * (high - low)
    assert heights["c"] == pytest.approx(1.0)
