"""The README's picture: well-formed, every model's numbers in its own box, the same bytes for the same numbers."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.chain import MODELS
from posttrain.evals.chain_figure import BOX, GAP, PAD, chain_svg
from posttrain.records import DataError

SVG = "{http://www.w3.org/2000/svg}"
THINK = {"base": 0.304, "sft": 0.512, "grpo": 0.876, "fuse": 0.861, "align": 0.883, "distill": 0.65}


def evaluation(model: str, **changes: Any) -> dict[str, Any]:
    """Made-up numbers, different ones for each model."""
    place = MODELS.index(model)
    value = THINK[model]
    return {
        "model": model,
        "parameters": 893_184 if model != "distill" else 273_920,
        "think": {
            "avg": {"value": value, "low": value - 0.03, "high": value + 0.03},
            "tokens_mean_correct": 90.25 - 10 * place,
        },
        "no_think": {"avg": {"value": value / 4, "low": value / 4 - 0.02, "high": value / 4 + 0.02}},
    } | changes


def boxes(svg: str) -> list[ElementTree.Element]:
    """The groups, one per model; parsing raises where the text is not well-formed XML."""
    return ElementTree.fromstring(svg).findall(f"{SVG}g")


def words(box: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in box.findall(f"{SVG}text")]


def test_each_box_has_its_models_numbers_in_the_order_of_the_chain() -> None:
    svg = chain_svg({model: evaluation(model) for model in reversed(MODELS)})
    found = [words(box) for box in boxes(svg)]
    assert [box[0] for box in found] == list(MODELS)
    assert [box[3] for box in found] == ["30.4 %", "51.2 %", "87.6 %", "86.1 %", "88.3 %", "65.0 %"]
    assert [box[5] for box in found] == ["7.6 %", "12.8 %", "21.9 %", "21.5 %", "22.1 %", "16.2 %"]
    assert [box[6] for box in found] == ["90.2", "80.2", "70.2", "60.2", "50.2", "40.2"]
    assert [box[8] for box in found] == [*5 * ["893,184"], "273,920"]


def test_bars_are_as_long_as_the_accuracy_and_whiskers_as_its_interval() -> None:
    (box,) = boxes(chain_svg({"sft": evaluation("sft")}))
    full = BOX - 2 * PAD
    bars = {rect.get("class"): float(rect.get("width", "")) for rect in box.findall(f"{SVG}rect")}
    assert bars["think"] == pytest.approx(0.512 * full, abs=0.01)
    assert bars["direct"] == pytest.approx(0.128 * full, abs=0.01)
    whisker = box.findall(f"{SVG}path")[0].get("d", "")
    assert whisker.startswith(f"M{PAD + 0.482 * full:.2f} ") and whisker.endswith(f"H{PAD + 0.542 * full:.2f}")


@pytest.mark.parametrize("models", [MODELS, MODELS[:3], MODELS[:1]])
def test_an_arrow_between_neighbours_and_room_for_all(models: tuple[str, ...]) -> None:
    root = ElementTree.fromstring(chain_svg({model: evaluation(model) for model in models}))
    assert len(root.findall(f"{SVG}path")) == len(models) - 1
    assert root.get("viewBox", "").split()[2] == str(len(models) * BOX + (len(models) - 1) * GAP + 2)


def test_equal_numbers_give_equal_bytes() -> None:
    forwards = {model: evaluation(model) for model in MODELS}
    backwards = {model: evaluation(model) for model in reversed(MODELS)}
    assert chain_svg(forwards).encode() == chain_svg(backwards).encode()


def test_a_model_that_is_never_right_has_no_length() -> None:
    never = evaluation("base")
    never["think"]["tokens_mean_correct"] = None
    assert words(boxes(chain_svg({"base": never}))[0])[6] == "\N{EN DASH}"


def test_missing_key_names_file_and_key() -> None:
    broken = evaluation("grpo")
    del broken["no_think"]
    with pytest.raises(DataError, match=r"reports/evaluate/grpo\.json: key 'no_think\.avg'"):
        chain_svg({"grpo": broken})
