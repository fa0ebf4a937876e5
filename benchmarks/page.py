"""docs/performance.md from the results in reports/benchmarks. Nothing on the page is typed but how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth_page import TITLES as AXIS_TITLES
from benchmarks.growth_page import growth_section
from benchmarks.levers_page import levers_section, overheads_section
from benchmarks.settings import CASES, PRECISIONS, Case, Settings
from benchmarks.tables import table
from posttrain.evals.inputs import Source, read_source
from posttrain.records import DataError

PAGE = Path("docs/performance.md")

Results = Mapping[str, Mapping[str, Source]]
"""Device (cpu, cuda) -> model-case, model-levers, `startup`, `chain` or `growth` -> result."""

TITLES: Mapping[Case, str] = {
    "sft": "SFT, packed",
    "dpo": "DPO with its reference pass",
    "dpo_cached": "DPO, reference cached",
    "reward_model": "reward model",
    "grpo_update": "GRPO update on given responses",
    "generate": "generation",
    "grpo": "GRPO step, end to end",
}
HEADER = (
    "case", "work", "vocabulary", "ours, s", "TRL, s", "TRL / ours", "tokens/s", "peak memory, GiB", "utilisation, %",
    "precision",
)  # fmt: skip

INTRODUCTION = """\
Both sides run in processes of their own, with the same weights, token ids, optimizer and number of optimizer steps, and
the same environment (`posttrain.system`: allocator, threads). They take turns, ours first, so that what a shared
machine does meanwhile hits both; every figure is a median, every ratio that of the pairs, with its 95 % bootstrap
interval over them. Pairs of numbers are ours / TRL's. Each side runs through the loop or trainer that its users call.

    make bench                                  # everything; hours on two cores
    make bench ARGS="--model micro --case sft"  # one case
    make bench ARGS="--startup"                 # what a process costs before it does anything
    make bench ARGS="--growth"                  # how one of our updates grows; about ten minutes on two cores
    make bench ARGS="--levers"                  # what each of our levers is worth; --levers norms: that one
    make bench ARGS="--chain"                   # where the seconds of the last `make run` went
    make bench ARGS="--page"                    # only this page, from reports/benchmarks

A speed is given only where a parity gate was passed first, in fp32: the same loss and gradient norm at the first two
optimizer steps (the second sees the first one's update), for generation the same tokens decoded greedily. A whole GRPO
step draws its own samples, so both its halves must pass: the update on given responses, and generation."""

PEER = """\
## TRL's settings

The fastest that we know: `sdpa` attention, no gradient checkpointing, fused AdamW, no reference model in GRPO (`beta`
0), no dropout, no evaluation, no checkpoints; packing by best-fit decreasing, which TRL flattens to one row; the
allocator and thread settings of `posttrain.system`, and starts without optional imports that nobody uses
(`posttrain.lean_imports`), none of which a peer has by itself. How many rows go through one forward pass is tried out
for each case in the same run, and in which precision: fp32 on a machine that does not multiply in bf16, else `mixed`
(fp32 weights under autocast) and `bf16` (weights and optimizer without fp32 master weights, which loses small updates);
for the micro model all three. On a GPU a pass takes the whole step, on both sides. The fastest is what we compare with.
Ours runs in bf16, with fp32 master weights, where the machine multiplies in it (profile `tiny`, whose architecture the
micro model has, says fp32 for `make run` on any machine). Both sides generate with transformers."""

READING = """\
Tokens: those of every row, prompts included; where responses are sampled, the sampled ones. Peak memory: the largest
resident set of the process (on a GPU: allocated on the device). Utilisation: the operations that the work needs (a
prompt once for all its responses, the LM head only where there is a loss, causal attention; backward twice a forward
pass) over the matrix rate measured in the same run, in the precision of that side. A side that computes a prompt once
per response has the lower utilisation by that alone."""


def read_results(folder: Path) -> dict[str, dict[str, Source]]:
    """What is there; empty where nothing was measured."""
    return {
        kind.name: {
            path.stem: Source(str(path), read_source(kind, path.name).values) for path in sorted(kind.glob("*.json"))
        }
        for kind in sorted(folder.glob("*"))
        if kind.is_dir()
    }


def build(results: Results, settings: Settings) -> str:
    """The page; raises DataError where results of one device come from different machines."""
    parts = ["# performance: side by side with TRL", INTRODUCTION]
    for kind, measured in results.items():
        parts.append(device(kind, measured, settings))
    known = {name for measured in results.values() for name in measured}
    missing: dict[str, list[str]] = {
        model: [case for case in CASES if case in numbers.cases and f"{model}-{case}" not in known]
        for model, numbers in settings.models.items()
    }
    if "startup" not in known:
        missing["start of a process"] = ["all"]
    missing["levers"] = [] if any(name.endswith("-levers") for name in known) else ["all"]
    missing["seconds of `make run`"] = [] if "chain" in known else ["all"]
    grown = {axis for measured in results.values() if "growth" in measured for axis in measured["growth"].need("axes")}
    missing["growth"] = [AXIS_TITLES[axis] for axis in settings.growth.axes if axis not in grown]
    if any(missing.values()):
        names = "; ".join(f"{model}: {', '.join(cases)}" for model, cases in missing.items() if cases)
        parts.append(f"Not run yet: {names}. `make bench` measures and writes this page.")
    return "\n\n".join([*parts, PEER]) + "\n"


def machine_of(measured: Mapping[str, Source], now: Mapping[str, Any] | None = None) -> str:
    """The machine of a device's results, and of what is measured `now`; raises DataError where there are several."""
    machines = {machine_name(result.need("machine")): result.file for result in measured.values()}
    if now is not None:
        machines.setdefault(machine_name(now), "what would be measured now")
    if len(machines) > 1:
        raise DataError(
            f"{' and '.join(machines.values())}: measured on {' and on '.join(machines)}; wanted: one machine per "
            "device and one number of threads; remove the results of the other"
        )
    (machine,) = machines
    return machine


def machine_name(machine: Mapping[str, Any]) -> str:
    return f"{machine['name']}, threads per side: {machine['threads']}"


def device(kind: str, measured: Mapping[str, Source], settings: Settings) -> str:
    """One machine's tables."""
    machine = machine_of(measured)
    some = next(iter(measured.values()))
    versions = ", ".join(f"{name} {number}" for name, number in some.need("machine.versions").items())
    parts = [f"## {machine}", f"Measured with {versions}.", READING]
    if startup := measured.get("startup"):
        parts.append(startup_section(startup))
    for model in settings.models:
        own = [measured[f"{model}-{case}"] for case in CASES if f"{model}-{case}" in measured]
        if own:
            parts.append(model_section(model, own))
    parts += [levers_section(measured[f"{model}-levers"]) for model in settings.models if f"{model}-levers" in measured]
    if chain := measured.get("chain"):
        parts.append(overheads_section(chain))
    if growth := measured.get("growth"):
        parts.append(growth_section(growth, kind))
    return "\n\n".join(parts)


def model_section(model: str, results: Sequence[Source]) -> str:
    """The table of a model, what was refused, and where steps and rates come from."""
    timed = [result for result in results if "ratio" in result.values]
    some = results[0]
    parameters = f"{some.need('parameters') / 1e6:,.1f} M parameters, weights: {some.need('weights')}"
    parts = [f"### {model}", f"{parameters}."]
    if timed:
        parts += [table([HEADER, *map(row, timed)]), notes(timed)]
        parts.append(table([("case", "seconds of a step by part, ours / TRL's"), *map(parts_row, timed)]))
    refused = [result for result in results if "ratio" not in result.values]
    parts += [f"{title(result)}: no speed, because {failure(result)}." for result in refused]
    return "\n\n".join(parts)


def startup_section(result: Source) -> str:
    """Seconds by cause."""
    rows = [(name, f"{seconds:.2f}") for name, seconds in result.need("seconds").items()]
    head = f"### Start of a process\n\nMedian of {result.need('repeats')} fresh processes, start of Python included."
    return f"{head}\n\n{table([('what it imports or runs', 'seconds'), *rows])}"


def title(result: Source) -> str:
    case: Case = result.need("case")
    return TITLES[case]


def row(result: Source) -> tuple[str, ...]:
    ratio, size = result.need("ratio"), result.need("size")
    shares = [side.get("utilisation") for side in (result.need("ours"), result.need("trl"))]
    return (
        title(result),
        f"{size['prompts']} x {size['group']}, prompt {size['prompt_tokens']}, response {lengths(size)}",
        f"{result.need('vocabulary'):,}",
        f"{result.need('ours.median'):.3g}",
        f"{result.need('trl.median'):.3g}",
        f"**{ratio['value']:.2f}** [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        both(result, "tokens_per_second", "{:,.0f}"),
        " / ".join(f"{result.need(f'{side}.peak') / 2**30:.2f}" for side in ("ours", "trl")),
        "-" if None in shares else " / ".join(f"{100 * share:.0f}" for share in shares),
        both(result, "precision", "{}"),
    )


def lengths(size: Mapping[str, Any]) -> str:
    """Shortest and longest response."""
    shortest = max(1, round((1.0 - size["spread"]) * size["response_tokens"]))
    return f"{size['response_tokens']}" if size["spread"] == 0 else f"{shortest} to {size['response_tokens']}"


def both(result: Source, key: str, form: str) -> str:
    return " / ".join(form.format(result.need(f"{side}.{key}")) for side in ("ours", "trl"))


def notes(results: Sequence[Source]) -> str:
    """Rates of the run, the bound on decoding, and what was tried for the peer."""
    lines = []
    for result in results:
        rates = result.need("rates")
        products = ", ".join(f"{rates[name] / 1e9:,.0f} GFLOP/s in {name}" for name in PRECISIONS if name in rates)
        pairs = len(result.need("ours.seconds"))
        line = f"* {title(result)}: {pairs} pairs; matrix rate {products}, memory {rates['bytes'] / 1e9:.0f} GB/s. "
        if "share_of_bound" in result.need("ours"):
            shares = [100 * result.need(f"{side}.share_of_bound") for side in ("ours", "trl")]
            line += f"Of the bound by weights read or multiplied: {shares[0]:.0f} % / {shares[1]:.0f} %. "
        if tokens := result.need("size").get("pass_tokens"):
            line += f"Ours in passes of at most {tokens:,} tokens. "
        tried = ", ".join(f"{name}: {seconds:.3g} s" for name, seconds in result.need("tried").items())
        lines.append(f"{line}TRL tried with {tried}.")
    return "\n".join(lines)


def parts_row(result: Source) -> tuple[str, str]:
    sides = []
    for side in ("ours", "trl"):
        parts = result.need(f"{side}.parts")
        sides.append(", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items()) or "-")
    return title(result), " / ".join(sides)


def failure(result: Source) -> str:
    """Which gate was not passed, with its values."""
    proof = next(proof for proof in result.need("proofs") if not proof["passed"])
    gate = f"the parity gate of {TITLES[proof['case']]} was not passed"
    if "agreement" in proof:
        return f"{gate}: {100 * proof['agreement']:.0f} % of the greedy tokens are the same"
    return f"{gate}: loss and gradient norm by step {proof['ours']} against TRL's {proof['trl']}"
