"""python -m benchmarks.rollouts [--model NAME]: speed and memory of both rollout engines, into docs/rollouts.md.

Each engine samples the work of case `generate` (benchmarks/params.yaml) in a process of its own: start of the engine
with its first weight sync, one round that does not count, then rounds of sampling to the full length and weight syncs
with their canary. Results are kept in reports/rollouts/<device>-<model>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.__main__ import SETTINGS, WORK
from benchmarks.machine import cpu_name, has_bf16
from benchmarks.settings import Precision, load_settings
from benchmarks.side import BenchmarkError, run_json
from benchmarks.worker import Order, make_work
from benchmarks.world import engine_of, prepare_model, profile_params
from posttrain import config
from posttrain.config import ConfigError
from posttrain.engine.policy import load_policy
from posttrain.engine.rollout import Request, make_engine
from posttrain.errors import ModelError
from posttrain.evals.inputs import Source, read_source
from posttrain.evals.readme import with_block
from posttrain.files import rounded, write_atomic
from posttrain.machine import cuda_device, gpu_names
from posttrain.system import load_system

PAGE = Path("docs/rollouts.md")
REPORTS = Path("reports/rollouts")
ENGINES = ("transformers", "vllm")
ROUNDS = 5
SYNCS = 5
HEADER = ("model", "engine", "precision", "tokens/s", "start, s", "sync with canary, s", "peak memory, MiB")


def main(arguments: list[str] | None = None) -> int:
    settings = load_settings(SETTINGS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__)
    parser.add_argument("--model", choices=list(settings.models))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.worker:
        order = json.loads(wanted.worker)
        print(json.dumps(measure(Order(**order["order"]), order["engine"])))
        return 0
    try:
        for name in [wanted.model] if wanted.model else settings.models:
            model = settings.models[name]
            try:
                folder = prepare_model(model, profile_params(model.profile), WORK / "models" / name, seed=settings.seed)
            except ModelError as error:
                print(f"{name}: skipped: {error}", flush=True)
                continue
            precision = model.precision_here(has_bf16())
            order = Order("ours", str(SETTINGS), name, "generate", str(folder), precision, 0, ROUNDS)
            found = {engine: ask(order, engine, deadline=settings.deadline) for engine in ENGINES}
            size = model.cases["generate"].model_dump(mode="json")
            keep(name, {"model": name, "precision": precision, "size": size, "engines": found})
        write_page()
    except (ConfigError, BenchmarkError) as error:
        print(f"benchmarks.rollouts: {error}", file=sys.stderr)
        return 2
    return 0


def ask(order: Order, engine: str, *, deadline: float) -> dict[str, Any]:
    """What `measure` finds in a process of its own."""
    found = run_json(
        "benchmarks.rollouts",
        ["--worker", json.dumps({"order": vars_of(order), "engine": engine})],
        deadline=deadline,
    )
    print(f"{order.model} {engine}: {found['tokens_per_second']:.0f} tokens/s", flush=True)
    return found


def vars_of(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in Order.__slots__}


def measure(order: Order, kind: str) -> dict[str, Any]:
    """Medians over rounds and syncs; memory is that of this process and of all below it, at their peaks."""
    with tempfile.TemporaryDirectory() as scratch:
        work = make_work(order, Path(scratch))
        engine = engine_of(work.params, cast(Precision, order.precision)).model_copy(update={"rollout": kind})
        policy = load_policy(work.folder, precision=engine.precision)
        started = time.perf_counter()
        rollouts = make_engine(policy, engine, load_system())
        start = time.perf_counter() - started
        try:
            requests = [Request(str(p), group.prompt_ids) for p, group in enumerate(work.groups)]
            sampling = config.Generation(temperature=1.0, max_new_tokens=work.size.response_tokens)
            rounds, syncs = [], []
            for number in range(1 + ROUNDS):
                started = time.perf_counter()
                rollouts.generate(requests, samples=work.size.group, generation=sampling, seed=number, stop_ids=())
                rounds.append(time.perf_counter() - started)
            for number in range(1, 1 + SYNCS):
                started = time.perf_counter()
                rollouts.load_weights(policy.model, number)
                syncs.append(time.perf_counter() - started)
            tokens = work.size.prompts * work.size.group * work.size.response_tokens
            return {
                "tokens_per_second": tokens / median(rounds[1:]),
                "slowest": tokens / max(rounds[1:]),
                "fastest": tokens / min(rounds[1:]),
                "start_seconds": start,
                "sync_seconds": median(syncs),
                "peak_bytes": peak_of_tree(),
            }
        finally:
            rollouts.close()


def peak_of_tree(root: int | None = None) -> int:
    """Sum of the largest resident sets (VmHWM) of a process, by default this one, and of all that descend from it."""
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        parents[int(lines["Pid"])] = int(lines["PPid"])
        peaks[int(lines["Pid"])] = int(lines.get("VmHWM", "0 kB").split()[0]) * 1024
    wanted = {int(Path("/proc/self").resolve().name) if root is None else root}
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return sum(peaks.get(pid, 0) for pid in wanted)


def keep(name: str, result: Mapping[str, Any]) -> None:
    kind = "cuda" if cuda_device() else "cpu"
    machine = gpu_names()[0] if kind == "cuda" else cpu_name(Path("/proc/cpuinfo"))
    text = json.dumps(rounded({**result, "machine": machine}), indent=2, sort_keys=True)
    write_atomic(REPORTS / f"{kind}-{name}.json", text + "\n")


def block(results: Mapping[str, Source]) -> str:
    """The table of all results that are there; Markdown."""
    if not results:
        return "Not run yet: `python -m benchmarks.rollouts`."
    lines = [HEADER, ("---", "---", "---", *["---:"] * 4)]
    notes = []
    for result in results.values():
        size = result.need("size")
        for engine in ENGINES:
            values = result.need("engines")[engine]
            lines.append((
                result.need("model"),
                engine,
                result.need("precision"),
                f"{values['tokens_per_second']:,.0f} [{values['slowest']:,.0f}, {values['fastest']:,.0f}]",
                f"{values['start_seconds']:.1f}",
                f"{values['sync_seconds']:.2f}",
                f"{values['peak_bytes'] / 2**20:,.0f}",
            ))  # fmt: skip
        notes.append(
            f"{result.need('model')}: {size['prompts']} prompts of {size['prompt_tokens']} tokens, {size['group']} "
            f"samples each of {size['response_tokens']} tokens, on {result.need('machine')}."
        )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        f"{table}\n\n{' '.join(notes)} Median [slowest, fastest] of {ROUNDS} rounds; memory: resident sets of the "
        "stage's process and of all servers below it, at their peaks. Written by `python -m benchmarks.rollouts`."
    )


def read_all(folder: Path = REPORTS) -> dict[str, Source]:
    return {path.stem: read_source(folder, path.name) for path in sorted(folder.glob("*.json"))}


def write_page() -> None:
    write_atomic(PAGE, with_block(PAGE.read_text(encoding="utf-8"), block(read_all())))


if __name__ == "__main__":
    sys.exit(main())
