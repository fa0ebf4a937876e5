"""python -m benchmarks [--model NAME] [--case NAME ...] [--startup] [--levers [PART ...]] [--growth] [--chain] [--page]

Measures and writes docs/performance.md.

Ours against TRL, case by case; and, each alone with its flag: what a process costs before it does anything
(`--startup`), what each of our levers is worth (`--levers`, or `--levers norms head` for those with such names), how
one of our updates grows with the model and the step (`--growth`), and where the seconds of the last `make run` in this
folder went (`--chain`).

Each result is kept in reports/benchmarks/<device>/<model>-<case>.json, so that the page also shows what was measured
before; `--page` measures nothing. Sizes and numbers stand in benchmarks/params.yaml.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth import measure_growth
from benchmarks.growth_figure import pictures
from benchmarks.lever import measure_levers
from benchmarks.machine import describe
from benchmarks.measure import Bench, Choice, Note, choose_peer, gate, measure
from benchmarks.overheads import measure_overheads
from benchmarks.page import PAGE, build, machine_of, read_results
from benchmarks.settings import CASES, PROOFS, Case, Settings, load_settings
from benchmarks.side import BenchmarkError
from benchmarks.startup import measure_startup
from benchmarks.world import prepare_model, profile_params, shape_of, source_of_weights
from posttrain.config import ConfigError, load_params
from posttrain.errors import ModelError
from posttrain.evals.inputs import Source
from posttrain.files import rounded, write_atomic
from posttrain.records import DataError
from posttrain.system import load_system
from posttrain.tracking import store_uri

SETTINGS = Path("benchmarks/params.yaml")
REPORTS = Path("reports/benchmarks")
WORK = Path(".work/benchmarks")
LEVERS_OF = ("micro",)
"""Models whose levers are measured where none is named."""
PEERS = ("trl", "accelerate")


def main(arguments: list[str] | None = None) -> int:
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"benchmarks: {time.monotonic() - started:5.0f} s  {text}", flush=True)

    failures: list[str] = []
    try:
        settings = load_settings(SETTINGS)
        wanted = _parser(settings).parse_args(arguments)
        if not wanted.page:
            refuse_missing_peer()
            machine = describe()
            machine_of(read_results(REPORTS).get(machine["kind"], {}), now=machine)
            failures = run(wanted, settings, machine, note)
        write_page(settings)
    except (ConfigError, DataError, BenchmarkError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    note(f"{PAGE} written")
    for failure in failures:
        print(f"benchmarks: {failure}", file=sys.stderr)
    return 2 if failures else 0


def refuse_missing_peer() -> None:
    """Raises ConfigError that says how to install it."""
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"package '{missing[0]}' is not installed; wanted: .venv/bin/pip install -c constraints.txt -e '.[bench]'"
        )


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks", description=__doc__
    )
    parser.add_argument("--model", choices=list(settings.models))
    parser.add_argument("--case", choices=CASES, nargs="+")
    parser.add_argument("--startup", action="store_true")
    parser.add_argument("--levers", nargs="*", metavar="PART_OF_NAME")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--chain", action="store_true")
    parser.add_argument("--page", action="store_true")
    return parser


def run(wanted: argparse.Namespace, settings: Settings, machine: dict[str, Any], note: Note) -> list[str]:
    """Measure what is wanted, or everything, and keep the results; the failures."""
    levers = wanted.levers is not None
    alone = wanted.startup or levers or wanted.growth or wanted.chain
    everything = not (wanted.model or wanted.case or alone)
    failures: list[str] = []
    if wanted.startup or everything:
        keep("startup", machine, measure_startup(deadline=settings.deadline))
        note("start-up of processes measured")
    if wanted.chain or everything:
        uri, experiment = store_uri(load_system()), f"posttrain/{load_params().profile}"
        keep("chain", machine, measure_overheads(uri, experiment))
        note("seconds of the last run of the chain read")
    if levers or everything:
        for name in [wanted.model] if wanted.model else LEVERS_OF:
            result = measure_levers(settings, SETTINGS, name, model_folder(settings, name), wanted.levers or ())
            if wanted.levers:
                result = with_others(read_results(REPORTS).get(machine["kind"], {}).get(f"{name}-levers"), result)
            keep(f"{name}-levers", machine, result)
            note(f"{name}: levers measured")
    if wanted.growth or everything:
        result, failures = measure_growth(settings, SETTINGS, WORK / "models/growth", note)
        if result["axes"]:
            keep("growth", machine, result)
    cases = wanted.case or everything or (wanted.model and not alone)
    for name in ([wanted.model] if wanted.model else settings.models) if cases else []:
        failures += run_model(name, wanted.case or CASES, settings, machine, note)
    return failures


def with_others(before: Source | None, result: dict[str, Any]) -> dict[str, Any]:
    """Levers just measured, in the places that they had among those measured before. Raises BenchmarkError at none."""
    if not result["levers"]:
        raise BenchmarkError("no lever has such a name; wanted: part of a name in docs/performance.md")
    new = {lever["name"]: lever for lever in result["levers"]}
    old = {} if before is None else {lever["name"]: lever for lever in before.need("levers")}
    return result | {"levers": list((old | new).values())}


def write_page(settings: Settings) -> None:
    """The page and its figures, from all results kept."""
    results = read_results(REPORTS)
    write_atomic(PAGE, build(results, settings))
    for name, svg in pictures(results).items():
        write_atomic(PAGE.parent / name, svg)


def model_folder(settings: Settings, name: str) -> Path:
    """Where the weights are; made where they are nowhere yet. Raises ModelError saying what is not installed."""
    model = settings.models[name]
    return prepare_model(model, profile_params(model.profile), WORK / "models" / name, seed=settings.seed)


def run_model(name: str, cases: Sequence[Case], settings: Settings, machine: dict[str, Any], note: Note) -> list[str]:
    """Measure a model's cases and keep the results; the failures, of which one does not stop the others."""
    model = settings.models[name]
    params = profile_params(model.profile)
    try:
        folder = model_folder(settings, name)
    except ModelError as error:
        note(f"{name}: skipped: {error}")
        return []
    shape, token_ids = shape_of(folder)
    described = {
        "model": name,
        "weights": model.folder if folder == Path(str(model.folder)) else source_of_weights(params),
        "parameters": shape.parameters,
        "vocabulary": shape.vocabulary,
    }
    bench = Bench(
        settings,
        SETTINGS,
        name,
        folder,
        shape,
        token_ids,
        machine["bf16"],
        machine["kind"] == "cuda",
        WORK / "logs",
        note,
    )
    gates = Gates(bench)
    failures: list[str] = []
    for case in cases:
        try:
            result = described | {"case": case, "size": bench.size(case).model_dump(mode="json")} | gates.measure(case)
        except BenchmarkError as error:
            note(f"{name} {case}: failed")
            failures.append(str(error))
            continue
        keep(f"{name}-{case}", machine, result)
    return failures


def keep(name: str, machine: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write a result where the page finds it."""
    path = REPORTS / machine["kind"] / f"{name}.json"
    text = json.dumps(rounded({**result, "machine": machine}), indent=2, sort_keys=True)
    write_atomic(path, text + "\n")


class Gates:
    """What has been found out about the cases of a model: the peer's settings, and which gates were passed."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._choices: dict[Case, tuple[Choice, dict[str, float]]] = {}
        self._verdicts: dict[Case, dict[str, Any]] = {}

    def measure(self, case: Case) -> dict[str, Any]:
        """Speeds where every proof of the case holds; the proofs alone where one does not."""
        proofs = [self._verdict(proof) for proof in PROOFS[case]]
        if not all(proof["passed"] for proof in proofs):
            return {"proofs": proofs}
        choice, tried = self._choice(case)
        return measure(self._bench, case, proofs=proofs, choice=choice) | {"tried": tried}

    def _choice(self, case: Case) -> tuple[Choice, dict[str, float]]:
        if case not in self._choices:
            self._choices[case] = choose_peer(self._bench, case)
        return self._choices[case]

    def _verdict(self, case: Case) -> dict[str, Any]:
        if case not in self._verdicts:
            self._verdicts[case] = gate(self._bench, case, self._choice(case)[0].batch)
            passed = "passed" if self._verdicts[case]["passed"] else "NOT passed"
            self._bench.note(f"{self._bench.model} {case}: parity gate {passed}")
        return self._verdicts[case]


if __name__ == "__main__":
    sys.exit(main())
