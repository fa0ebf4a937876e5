"""Turns, machines, and the page: no worker is started."""

import io
import json
from pathlib import Path

import pytest
import yaml

from benchmarks.machine import cpu_name, multiplies_bf16
from benchmarks.measure import Bench, Choice, compare, operations, side_report, tokens
from benchmarks.page import PAGE, build, machine_of, read_results
from benchmarks.settings import CASES, load_settings
from benchmarks.side import BenchmarkError, Step
from benchmarks.startup import measure_startup
from benchmarks.turns import PipeTurns, Stopped
from benchmarks.world import even_share, make_groups, profile_params, source_of_weights
from posttrain.config import ConfigError
from posttrain.records import DataError
from tests.benchmarks.test_arithmetic import SHAPE

FILE = Path("benchmarks/params.yaml")
SETTINGS = load_settings(FILE)


def bench(bf16=False, gpu=False) -> Bench:
    return Bench(SETTINGS, FILE, "micro", Path("models/base"), SHAPE, range(10, 50), bf16, gpu, Path(), print)


def test_a_turn_is_timed_from_go_to_answer_and_ends_at_another_word():
    answers = io.StringIO()
    turns = PipeTurns(io.StringIO("go\ngo\nstop\n"), answers, synchronise=lambda: None)
    turns.begin()
    turns.done([1.5, 2.0], {"update": 0.25})
    with pytest.raises(Stopped):
        turns.done([1.0])
    ready, first, second = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert first["values"] == [1.5, 2.0] and first["parts"] == {"update": 0.25}
    assert 0 <= first["seconds"] < 1 and second["values"] == [1.0]


def test_groups_are_the_same_for_the_same_seed_and_within_their_lengths():
    size = SETTINGS.models["micro"].cases["grpo_update"]
    groups = make_groups(size, range(10, 50), seed=1)
    assert groups == make_groups(size, range(10, 50), seed=1) != make_groups(size, range(10, 50), seed=2)
    lengths = {len(response) for group in groups for response in group.responses}
    assert min(lengths) >= 48 and max(lengths) <= 96 and len(lengths) > 20
    # Every group teaches something: no two of its rewards need differ by luck.
    assert all(len({even_share(r) for r in group.responses}) > 1 for group in groups)


def test_tokens_and_operations_of_a_step():
    groups = bench().groups("dpo")
    assert tokens(bench(), "dpo") == sum(64 * 2 + len(a) + len(b) for a, b in (g.responses for g in groups))
    assert tokens(bench(), "generate") == 32 * 8 * 96
    # Forward 1, backward 2, and 1 of the reference.
    assert operations(bench(), "dpo") == pytest.approx(operations(bench(), "dpo_cached") * 4 / 3)


def test_a_side_in_figures():
    steps = SETTINGS.models["micro"].cases["dpo"].steps
    turns = [
        [Step(1.0, [], {"update": 0.5})] * steps,
        [Step(3.0, [], {"update": 1.5})] * steps,
        [Step(2.0, [], {})] * steps,
    ]
    rates = {"fp32": 1e9, "bf16": 4e9, "bytes": 1e9}
    report = side_report(bench(), "dpo", Choice("fp32", 8), turns, 2**20, rates)
    assert report["seconds"] == [1.0, 3.0, 2.0] and report["median"] == 2.0
    assert report["tokens_per_second"] == tokens(bench(), "dpo") / 2.0
    assert report["utilisation"] == pytest.approx(operations(bench(), "dpo") / 2.0 / 1e9)
    assert report["parts"] == {"update": 1.0}
    quarter = side_report(bench(), "dpo", Choice("bf16", 8), turns, 2**20, rates)
    assert quarter["utilisation"] == pytest.approx(report["utilisation"] / 4)


def test_bf16_only_where_the_machine_has_it():
    assert {choice.precision for choice in bench().candidates("sft")} == {"fp32"}
    assert {choice.precision for choice in bench(bf16=True).candidates("sft")} == {"fp32", "mixed", "bf16"}


def test_on_a_gpu_the_peer_takes_a_step_in_one_pass():
    assert {choice.batch for choice in bench(gpu=True).candidates("dpo")} == {32}
    assert {choice.batch for choice in bench(gpu=True).candidates("grpo_update")} == {32 * 8}


def test_processor_from_its_description(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Fast 9000\nflags\t\t: fpu avx512f\nmodel name\t: Fast 9000\n")
    assert cpu_name(file).startswith("Fast 9000, ") and not multiplies_bf16(file)
    file.write_text("flags\t\t: fpu avx512_bf16 amx_tile\n")
    assert multiplies_bf16(file)


def test_wrong_numbers_are_named(tmp_path):
    values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    values["models"]["micro"]["cases"]["dpo"]["peer_batch"] = [7]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"micro.cases.dpo: .*got \(7,\), wanted divisors"):
        load_settings(path)


def result(case, *, machine="Fast 9000", threads=2, **changes) -> dict:
    side = {"precision": "fp32", "batch": 8, "median": 0.5, "tokens_per_second": 1234.0, "peak": 2**30, "parts": {}}
    side |= {"seconds": [0.5] * 6} | ({"utilisation": 0.31} if case != "grpo" else {})
    return {
        "model": "micro",
        "case": case,
        "machine": {"name": machine, "threads": threads, "versions": {"torch": "2"}},
        "weights": "models/base",
        "parameters": 1_000_000,
        "vocabulary": 832,
        "size": SETTINGS.models["micro"].cases[case].model_dump(mode="json"),
        "ours": side | {"parts": {"generate": 0.2}},
        "trl": side | {"median": 1.5},
        "ratio": {"value": 3.0, "low": 2.5, "high": 3.25},
        "rates": {"fp32": 1e11, "bf16": 5e10, "bytes": 2e10},
        "tried": {"fp32, batch 8": 1.4},
        "proofs": [{"case": case, "passed": True}],
    } | changes


def write(folder, *rows) -> Path:
    (folder / "cpu").mkdir(exist_ok=True)
    for row in rows:
        (folder / "cpu" / f"{row['model']}-{row['case']}.json").write_text(json.dumps(row), encoding="utf-8")
    return folder


def test_page_says_what_was_measured_and_what_was_not(tmp_path):
    page = build(read_results(write(tmp_path, result("sft"), result("grpo"))), SETTINGS)
    assert "| SFT, packed | 64 x 1, prompt 40, response 55 to 110 | 832 | 0.5 | 1.5 | **3.00** [2.50, 3.25] |" in page
    assert "| 1,234 / 1,234 | 1.00 / 1.00 | 31 / 31 | fp32 / fp32 |" in page
    assert "| GRPO step, end to end | generate 0.2 / - |" in page
    assert ": 6 pairs; matrix rate 100 GFLOP/s in fp32, 50 GFLOP/s in bf16, memory 20 GB/s." in page
    assert "TRL tried with fp32, batch 8: 1.4 s." in page and "## Fast 9000, threads per side: 2" in page
    assert "Not run yet: micro: dpo, dpo_cached, reward_model, grpo_update, generate; smollm2: sft" in page


def test_weights_that_nobody_trained_are_said_to_be_random():
    assert source_of_weights(profile_params("tiny")) == "random, in the architecture of profile tiny"
    assert source_of_weights(profile_params("smollm2")) == "base.kind package of profile smollm2"


def test_page_shows_the_start_of_processes(tmp_path):
    machine = {"name": "Fast 9000", "threads": 2, "versions": {"torch": "2"}}
    row = {"model": "", "case": "", "machine": machine, "repeats": 5}
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/startup.json").write_text(json.dumps(row | {"seconds": {"torch": 1.234}}), encoding="utf-8")
    page = build(read_results(tmp_path), SETTINGS)
    assert "| torch | 1.23 |" in page and "start of a process" not in page


def test_commands_are_timed_and_their_failure_is_told():
    found = measure_startup(deadline=60.0, commands={"nothing": ("-S", "-c", "pass")})
    assert 0 < found["seconds"]["nothing"] < 60
    with pytest.raises(BenchmarkError, match="no_such_module"):
        measure_startup(deadline=60.0, commands={"bad": ("-S", "-c", "import no_such_module")})


def test_page_has_no_speed_where_the_gate_was_not_passed(tmp_path):
    refused = result("sft")
    for key in ("ours", "trl", "ratio", "rates", "tried"):
        del refused[key]
    refused["proofs"] = [{"case": "sft", "passed": False, "ours": [[1.0, 2.0]], "trl": [[1.5, 2.0]]}]
    page = build(read_results(write(tmp_path, refused)), SETTINGS)
    assert "SFT, packed: no speed, because the parity gate of SFT, packed was not passed" in page
    assert "3.00" not in page


def test_no_rate_of_a_precision_that_the_machine_does_not_multiply_in(tmp_path):
    page = build(read_results(write(tmp_path, result("sft", rates={"fp32": 1e11, "bytes": 2e10}))), SETTINGS)
    assert "matrix rate 100 GFLOP/s in fp32, memory 20 GB/s." in page


@pytest.mark.parametrize("other", [{"machine": "Slow 1"}, {"threads": 1}])
def test_results_of_two_machines_or_numbers_of_threads_share_no_table(tmp_path, other):
    folder = write(tmp_path, result("sft"), result("grpo", **other))
    with pytest.raises(DataError, match="one machine per device"):
        build(read_results(folder), SETTINGS)


def test_another_machine_is_refused_before_anything_is_measured(tmp_path):
    there = read_results(write(tmp_path, result("sft")))["cpu"]
    now = {"name": "Fast 9000", "threads": 2}
    assert machine_of(there, now=now) == machine_of({}, now=now) == "Fast 9000, threads per side: 2"
    with pytest.raises(DataError, match=r"micro-sft.json and what would be measured now: .*threads per side: 1"):
        machine_of(there, now=now | {"threads": 1})


def test_committed_page_is_that_of_the_committed_results():
    assert PAGE.read_text(encoding="utf-8") == build(read_results(Path("reports/benchmarks")), SETTINGS)


def test_gate_verdicts():
    assert compare("sft", [[2.0, 1.0]], [[2.0, 1.0001]], settings=SETTINGS)["passed"]
    assert not compare("sft", [[2.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [1.2, 1.0]], settings=SETTINGS)["passed"]
    tokens_of_both = [list(range(20))], [[*range(19), 0]]
    assert compare("generate", *tokens_of_both, settings=SETTINGS) == {
        "case": "generate",
        "passed": True,
        "agreement": 0.95,
    }
    assert set(CASES) == set(SETTINGS.models["smollm2"].cases)
