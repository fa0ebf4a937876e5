"""Growth: what its settings refuse, what is made of its seconds, page and figure, and one point in a real process."""

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

from benchmarks import __main__ as program
from benchmarks import growth, turns
from benchmarks.arithmetic import exponent
from benchmarks.growth import Order, measure_growth, operations, params_of, point_report, run_point
from benchmarks.growth_figure import pictures
from benchmarks.growth_point import make_work, teaching_groups
from benchmarks.page import PAGE, build, read_results
from benchmarks.settings import AXES, HELD, Point, load_settings
from benchmarks.side import BenchmarkError, run_json
from benchmarks.turns import Stopped, TimedTurns
from benchmarks.world import even_share
from posttrain.config import ConfigError
from tests.benchmarks.test_arithmetic import SHAPE

FILE = Path("benchmarks/params.yaml")
SETTINGS = load_settings(FILE)
POINT = Point(model="128x4", prompts=2, group=2, prompt_tokens=3, response_tokens=1)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16}
STEP = {"model": "small", "prompts": 2, "group": 2, "prompt_tokens": 6, "response_tokens": 8}


def written(folder: Path, **changes) -> Path:
    """Settings with a growth of one small axis, and changes to it."""
    values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    values["growth"] |= {
        "models": {"small": SMALL | {"max_position_embeddings": 64}},
        "axes": {"group": [STEP, STEP | {"group": 3}]},
        "seconds": 0.001,
    } | changes
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": {"group": [STEP, STEP | {"group": 3, "prompts": 4}]}},
            r"axes\.group: prompts: got 2, 4, wanted the",
        ),
        ({"axes": {"group": [STEP, STEP]}}, r"axes\.group: got 2, 2, wanted each above the one before it"),
        (
            {"axes": {"length": [STEP, STEP | {"prompt_tokens": 7}]}},
            r"axes\.length: tokens: got 44, 46, wanted the",
        ),
        ({"axes": {"parameters": [STEP, STEP]}}, r"axes\.parameters: model: got small, small, wanted different ones"),
        (
            {"axes": {"group": [STEP, STEP | {"model": "huge"}]}},
            r"axes\.group\.1\.model: got 'huge', wanted one",
        ),
        (
            {"axes": {"group": [STEP, STEP | {"response_tokens": 60}]}},
            r"axes\.group\.1: got 6 \+ 60 tokens, wanted at most 64, the max_position_embeddings of model small",
        ),
        ({"axes": {"group": [STEP]}}, r"growth\.axes\.group: .*at least 2 items"),
        ({"axes": {"group": [STEP | {"group": 1}, STEP]}}, r"axes\.group\.0\.group: got 1; wanted: .*equal to 2"),
        ({"axes": {"width": [STEP, STEP]}}, r"growth\.axes\.width"),
        ({"steps": 2}, r"growth\.steps: got 2; wanted: .*equal to 3"),
        ({"warmup": 0}, r"growth\.warmup: got 0"),
    ],
)
def test_wrong_axes_are_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, **changes))


def test_one_thing_changes_along_each_axis_and_reaches_as_far_as_the_page_says():
    axes = SETTINGS.growth.axes
    assert tuple(axes) == AXES == tuple(HELD)
    assert [point.length for point in axes["length"]] == [128, 256, 512, 1024, 2048, 4096]
    assert [point.group for point in axes["group"]] == [point.prompts for point in axes["prompts"]]
    assert {point.prompt_tokens / point.length for point in axes["length"]} == {0.25}


def test_only_a_model_built_from_nothing_can_grow():
    other = SETTINGS.growth.model_copy(update={"profile": "smollm2"})
    with pytest.raises(ConfigError, match=r"growth\.profile: got 'smollm2', whose base\.kind is package; wanted"):
        params_of(other, "128x4")
    assert params_of(SETTINGS.growth, "256x8").base.model.hidden_size == 256


def test_slope_between_the_two_largest():
    # From (10, 2) to (1000, 20): a factor of 10 for one of 100; the first point is of no account.
    assert exponent([(1000.0, 20.0), (1.0, 9.0), (10.0, 2.0)]) == pytest.approx(0.5)
    # Twice the seconds for twice the operations, and four times.
    assert exponent([(1.0, 1.0), (2.0, 2.0)]) == pytest.approx(1.0)
    assert exponent([(1.0, 1.0), (2.0, 4.0)]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="got two points at 2, wanted different ones"):
        exponent([(1.0, 1.0), (2.0, 4.0), (2.0, 5.0)])


def test_tokens_and_operations_of_a_point():
    assert (POINT.tokens, POINT.length) == (2 * (3 + 2 * 1), 4)
    # One group: 5 tokens; query-key pairs 6 + 2 x (3 + 1) = 14; 2 scored positions. Backward is twice the forward.
    forward = 2 * 1000 * 5 + 4 * 2 * 6 * 14 + 2 * 50 * 8 * 2
    assert operations(SHAPE, POINT) == 3 * 2 * forward


def test_a_point_in_figures():
    report = point_report("group", POINT, SHAPE, {"seconds": [3.0, 1.0, 2.0, 9.0], "peak": 7})
    assert (report["median"], report["fastest"], report["slowest"], report["timed"]) == (2.5, 1.0, 9.0, 4)
    assert (report["value"], report["parameters"], report["tokens"], report["peak"]) == (2, 1400, 10, 7)
    assert point_report("parameters", POINT, SHAPE, {"seconds": [1.0], "peak": 7})["value"] == 1400


def test_every_group_teaches():
    size = Point(model="128x4", prompts=20, group=2, prompt_tokens=1, response_tokens=1).size
    groups = teaching_groups(size, range(10, 50), seed=1)
    assert len(groups) == 20 == len(set(groups))
    # With one token each, half of all pairs would have equal rewards.
    assert all(even_share(a) != even_share(b) for a, b in (group.responses for group in groups))
    assert groups == teaching_groups(size, range(10, 50), seed=1) != teaching_groups(size, range(10, 50), seed=2)


def test_steps_are_timed_until_there_are_enough_and_they_took_long_enough(monkeypatch):
    # Warm-up 5 s, then steps of 1 s: three are too few for 3.5 s.
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 40.0, 41.0])
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    waits = []
    timed = TimedTurns(warmup=1, steps=3, seconds=3.5, synchronise=lambda: waits.append(1))
    timed.begin()
    for _ in range(4):
        timed.done([0.0])
    with pytest.raises(Stopped):
        timed.done([0.0])
    assert timed.seconds == [1.0] * 4 and len(waits) == 5


def point(axis, value, **changes) -> dict:
    return {
        **SETTINGS.growth.axes[axis][0].model_dump(),
        "value": value,
        "parameters": 6_500_000,
        "tokens": 1024,
        "operations": 1e10,
        "timed": 3,
        "median": 0.5,
        "fastest": 0.4,
        "slowest": 0.75,
        "peak": 3 * 2**29,
    } | changes


def results(folder: Path, *axes) -> dict:
    """Of a made-up machine: along each axis four times the operations in twice the seconds."""
    more = {"operations": 4e10, "median": 1.0, "fastest": 0.75, "slowest": 2.0}
    row = {
        "machine": {"name": "Fast 9000", "threads": 2, "versions": {"torch": "2"}},
        "precision": "fp32",
        "vocabulary": 832,
        "micro_batch_tokens": 8192,
        "warmup": 1,
        "steps": 3,
        "seconds": 3.0,
        "rate": 1.3e11,
        "axes": {axis: [point(axis, 2_500), point(axis, 25_000_000, **more)] for axis in sorted(axes)},
    }
    (folder / "cpu").mkdir(exist_ok=True)
    (folder / "cpu/growth.json").write_text(json.dumps(row), encoding="utf-8")
    return read_results(folder)


def test_page_shows_what_grew(tmp_path):
    page = build(results(tmp_path, *AXES), SETTINGS)
    assert "### Growth" in page and "](growth.svg)" in page
    titles = ["#### model size", "#### sequence length", "#### group size", "#### number of prompts"]
    assert sorted(titles, key=page.index) == titles
    assert "| 25 M (128x4) | 1,024 | 1 [0.75, 2] | 40 | 1.50 |" in page
    assert "| 2,500 | 1,024 | 0.5 [0.4, 0.75] | 20 | 1.50 |" in page
    assert page.count("seconds grow as operations to the power 0.50.") == 4
    assert "2 prompts, 4 responses to each prompt, prompts of 64 tokens, responses of 112 tokens. Between" in page
    assert "model 128x4 of 6.5 M parameters, 2 responses to each prompt, 1,024 tokens through the model." in page
    assert "Not run yet: " in page and "growth:" not in page


def test_page_says_which_axes_were_not_measured(tmp_path):
    missing = "growth: sequence length, number of prompts"
    assert f"; {missing}. `make bench`" in build(results(tmp_path, "group", "parameters"), SETTINGS)
    empty = build({}, SETTINGS)
    assert "growth: model size, sequence length, group size, number of prompts" in empty and "### Growth" not in empty


def test_figure_is_the_same_for_the_same_numbers_and_has_every_axis(tmp_path):
    measured = results(tmp_path, *AXES)
    drawn = pictures(measured)
    assert list(drawn) == ["growth.svg"] and drawn == pictures(measured)
    ElementTree.fromstring(drawn["growth.svg"])
    for words in ("model size", "sequence length", "group size", "number of prompts", "seconds per step", "25 M"):
        assert words in drawn["growth.svg"]
    assert list(pictures({"cuda": measured["cpu"], "cpu": {}})) == ["growth-cuda.svg"]


def test_committed_figure_is_that_of_the_committed_results():
    drawn = pictures(read_results(Path("reports/benchmarks")))
    assert {path.name for path in PAGE.parent.glob("growth*.svg")} == set(drawn)
    assert all((PAGE.parent / name).read_text(encoding="utf-8") == svg for name, svg in drawn.items())


@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        ("", ["startup", "chain", "micro-levers", "growth", *SETTINGS.models]),
        ("--growth", ["growth"]),
        ("--growth --startup", ["startup", "growth"]),
        ("--levers", ["micro-levers"]),
        ("--levers --model smollm2", ["smollm2-levers"]),
        ("--chain", ["chain"]),
        ("--model micro", ["micro"]),
        ("--case sft", list(SETTINGS.models)),
        ("--model micro --case sft --growth", ["growth", "micro"]),
    ],
)
def test_what_is_measured(monkeypatch, arguments, measured):
    done = []
    monkeypatch.setattr(program, "measure_startup", lambda **_: {})
    monkeypatch.setattr(program, "measure_overheads", lambda *_: {})
    monkeypatch.setattr(program, "measure_levers", lambda *_: {})
    monkeypatch.setattr(program, "model_folder", lambda *_: Path("nowhere"))
    monkeypatch.setattr(program, "measure_growth", lambda *_: ({"axes": {"group": []}}, ["failed"]))
    monkeypatch.setattr(program, "keep", lambda name, *_: done.append(name))
    monkeypatch.setattr(program, "run_model", lambda name, *_: done.append(name) or [])
    failures = program.run(program._parser(SETTINGS).parse_args(arguments.split()), SETTINGS, {}, print)
    assert done == measured and failures == (["failed"] if "growth" in measured else [])


def test_a_failure_costs_its_axis_alone(monkeypatch):
    def run(order, *, deadline):
        if (order.axis, order.number) == ("length", 1):
            raise BenchmarkError("point 1: no memory")
        return {"seconds": [1.0, 2.0, 3.0], "peak": 5}

    monkeypatch.setattr(growth, "make_model", lambda *_: SHAPE)
    monkeypatch.setattr(growth, "run_json", lambda *_, **__: {"fp32": 2.0})
    monkeypatch.setattr(growth, "run_point", run)
    found, failures = measure_growth(SETTINGS, FILE, Path("models"), lambda text: None)
    assert list(found["axes"]) == ["parameters", "group", "prompts"]
    assert failures == ["growth, length: point 1: no memory"]
    assert [row["value"] for row in found["axes"]["group"]] == [2, 4, 8, 16, 32, 64]
    assert (found["rate"], found["vocabulary"], found["micro_batch_tokens"]) == (2.0, 50, 8192)


def test_a_point_runs_in_a_process_of_its_own(tmp_path):
    file = written(tmp_path)
    settings = load_settings(file)
    shape = growth.make_model(settings, "small", tmp_path / "small")
    order = Order(str(file), "group", 1, str(tmp_path / "small"))
    work = make_work(order, tmp_path)
    assert work.size.group == 3 and [len(group.responses) for group in work.groups] == [3, 3]
    report = point_report("group", settings.growth.axes["group"][1], shape, run_point(order, deadline=120.0))
    assert report["timed"] >= 3 and 0 < report["fastest"] <= report["median"] <= report["slowest"]
    assert report["value"] == 3 and report["peak"] > 2**26


def test_who_fails_is_named():
    with pytest.raises(BenchmarkError, match=r"no_such_module: ended with status 1\n.*No module named"):
        run_json("no_such_module", deadline=60.0)
    with pytest.raises(BenchmarkError, match=r"point 3: benchmarks\.growth_point: gave no answer within 0\.01 s"):
        run_point(Order("params.yaml", "group", 3, "models"), deadline=0.01)
