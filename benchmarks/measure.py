"""One case of one model: choose the peer's settings, pass the parity gate, then measure in turns.

Two workers stay up, one of which works while the other sleeps: nothing but the work itself is timed, and what the
machine does meanwhile hits both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.arithmetic import (
    BACKWARD,
    Shape,
    agreement,
    decode_bound,
    forward_operations,
    median_ratio,
    same,
    utilisation,
)
from benchmarks.settings import Case, Precision, Settings, Size
from benchmarks.side import Side, Step, run_json
from benchmarks.worker import Order
from benchmarks.world import Group, make_groups

TRIED = 2
"""Steps by which the peer's settings are compared, after a first one."""
COMPARED = 2
"""Steps whose loss and gradient norm the gate compares: the second sees the first one's update."""
WITH_REFERENCE: tuple[Case, ...] = ("dpo",)
RATED: tuple[Case, ...] = ("sft", "dpo", "dpo_cached", "grpo_update")
"""Cases with a utilisation: all their work is matrix products of known size."""
PAIRS: tuple[Case, ...] = ("dpo", "dpo_cached", "reward_model")
DRAWN: tuple[Case, ...] = ("generate", "grpo")
"""Cases that sample."""
WEIGHT_BYTES = {"fp32": 4, "mixed": 4, "bf16": 2}

Note = Callable[[str], None]
Name = Literal["ours", "trl"]
SIDES: tuple[Name, Name] = ("ours", "trl")


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings of a side."""

    precision: str
    batch: int


@dataclass(frozen=True, slots=True)
class Bench:
    """A model on this machine."""

    settings: Settings
    settings_file: Path
    model: str
    folder: Path
    shape: Shape
    token_ids: Sequence[int]
    bf16: bool
    """Whether the machine multiplies in it."""
    gpu: bool
    logs: Path
    note: Note

    @property
    def precision(self) -> Precision:
        return self.settings.models[self.model].precision_here(self.bf16)

    def size(self, case: Case) -> Size:
        return self.settings.models[self.model].cases[case]

    def groups(self, case: Case) -> tuple[Group, ...]:
        return make_groups(self.size(case), self.token_ids, seed=self.settings.seed)

    def side(self, name: Name, case: Case, choice: Choice) -> Side:
        numbers = self.settings
        steps = numbers.warmup + numbers.pairs * self.size(case).steps + TRIED + 1
        order = Order(
            name, str(self.settings_file), self.model, case, str(self.folder), choice.precision, choice.batch, steps
        )
        return Side(order, log=self.logs / f"{self.model}-{case}-{name}.log", deadline=numbers.deadline)

    def candidates(self, case: Case) -> list[Choice]:
        """What is tried for the peer."""
        precisions = self.settings.models[self.model].peer_precisions if self.bf16 else ("fp32",)
        size = self.size(case)
        # A GPU that holds the whole step does it in one pass; otherwise it waits for the next call.
        batches = (size.prompts * (1 if case in PAIRS else size.group),) if self.gpu else size.peer_batch
        return [Choice(precision, batch) for precision in precisions for batch in batches]


def choose_peer(bench: Bench, case: Case) -> tuple[Choice, dict[str, float]]:
    """The fastest of the candidates, and the seconds per step of each."""
    candidates = bench.candidates(case)
    seconds: dict[str, float] = {}
    for choice in candidates:
        with ExitStack() as stack:
            side = started(bench.side("trl", case, choice), stack)
            side.wait_until_ready()
            steps = [side.step() for _ in range(1 + TRIED)]
            side.stop()
        seconds[f"{choice.precision}, batch {choice.batch}"] = min(step.seconds for step in steps[1:])
    fastest = min(seconds, key=lambda name: seconds[name])
    bench.note(f"{bench.model} {case}: the peer is fastest with {fastest}")
    return candidates[list(seconds).index(fastest)], seconds


def started(side: Side, stack: ExitStack) -> Side:
    """The side, dead at the latest when the stack is closed."""
    stack.callback(side.kill)
    return side


def both(bench: Bench, case: Case, choices: Sequence[Choice], stack: ExitStack) -> list[Side]:
    """Ours and the peer, which start at the same time: nothing is timed yet."""
    sides = [started(bench.side(name, case, choice), stack) for name, choice in zip(SIDES, choices, strict=True)]
    for side in sides:
        side.wait_until_ready()
    return sides


def gate(bench: Bench, case: Case, batch: int) -> dict[str, Any]:
    """In fp32: do both sides compute the same? Losses and norms of the first steps, or tokens decoded greedily."""
    choice = Choice("fp32", batch)
    with ExitStack() as stack:
        values = []
        for side in both(bench, case, [choice, choice], stack):
            values.append([side.step().values for _ in range(1 if case == "generate" else COMPARED)])
            side.stop()
    return compare(case, *values, settings=bench.settings)


def compare(
    case: Case, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, settings: Settings
) -> dict[str, Any]:
    """The gate's verdict and the values it rests on, step by step."""
    if case == "generate":
        share = agreement(ours[0], theirs[0])
        return {"case": case, "passed": share >= settings.agreement, "agreement": share}
    passed = all(same(a, b, tolerance=settings.tolerance.fp32) for a, b in zip(ours, theirs, strict=True))
    return {"case": case, "passed": passed, "ours": [list(v) for v in ours], "trl": [list(v) for v in theirs]}


def measure(bench: Bench, case: Case, *, proofs: Sequence[dict[str, Any]], choice: Choice) -> dict[str, Any]:
    """The seconds of both sides in turns, and what follows from them; no speed where the first losses differ.

    `proofs`: gates, all of which were passed.
    """
    numbers, own = bench.settings, Choice(bench.precision, choice.batch)
    before = run_json("benchmarks.rates", deadline=numbers.deadline)
    with ExitStack() as stack:
        ours, theirs = both(bench, case, [own, choice], stack)
        warm = [[side.step() for _ in range(numbers.warmup)] for side in (ours, theirs)]
        if not (verdict := timed_losses(bench, case, warm[0][0], warm[1][0]))["passed"]:
            return {"proofs": [*proofs, verdict]}
        taken: list[list[list[Step]]] = [[], []]
        for _ in range(numbers.pairs):
            for number, side in enumerate((ours, theirs)):
                taken[number].append([side.step() for _ in range(bench.size(case).steps)])
        peaks = [ours.stop(), theirs.stop()]
    after = run_json("benchmarks.rates", deadline=numbers.deadline)
    rates = {name: max(before[name], after[name]) for name in before}
    seconds = [[sum(step.seconds for step in turn) for turn in turns] for turns in taken]
    sides = [
        side_report(bench, case, chosen, turns, peak, rates)
        for chosen, turns, peak in zip((own, choice), taken, peaks, strict=True)
    ]
    ratio = median_ratio(*seconds, draws=numbers.bootstrap, seed=numbers.seed)
    bench.note(f"{bench.model} {case}: TRL / ours {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    return {
        "ours": sides[0],
        "trl": sides[1],
        "ratio": ratio.to_json(),
        "rates": rates,
        "proofs": list(proofs),
    }


def timed_losses(bench: Bench, case: Case, ours: Step, theirs: Step) -> dict[str, Any]:
    """In the precisions that are timed the first losses must still be near each other; samples drawn have none."""
    if case in DRAWN:
        return {"case": case, "passed": True}
    tolerance = bench.settings.tolerance.bf16 if bench.bf16 else bench.settings.tolerance.fp32
    passed = same(ours.values[:1], theirs.values[:1], tolerance=tolerance)
    return {"case": case, "passed": passed, "ours": [ours.values], "trl": [theirs.values]}


def side_report(
    bench: Bench, case: Case, choice: Choice, turns: Sequence[Sequence[Step]], peak: int, rates: dict[str, float]
) -> dict[str, Any]:
    """Everything about one side; seconds and rates per step."""
    steps = bench.size(case).steps
    seconds = [sum(step.seconds for step in turn) / steps for turn in turns]
    typical = median(seconds)
    rate = rates["fp32" if choice.precision == "fp32" else "bf16"]
    report: dict[str, Any] = {
        "precision": choice.precision,
        "batch": choice.batch,
        "seconds": seconds,
        "median": typical,
        "tokens_per_second": tokens(bench, case) / typical,
        "peak": peak,
        "parts": parts_of([step for turn in turns for step in turn]),
    }
    if case in RATED:
        report["utilisation"] = utilisation(operations(bench, case), typical, rate=rate)
    if case == "generate":
        bound = decode_bound(
            bench.shape,
            bench.size(case).prompts * bench.size(case).group,
            weight_bytes=WEIGHT_BYTES[choice.precision],
            rate=rate,
            bandwidth=rates["bytes"],
        )
        report["share_of_bound"] = report["tokens_per_second"] / bound
    return report


def parts_of(steps: Sequence[Step]) -> dict[str, float]:
    """Median seconds of each part that the steps tell of."""
    names = sorted({name for step in steps for name in step.parts})
    return {name: median(step.parts[name] for step in steps if name in step.parts) for name in names}


def tokens(bench: Bench, case: Case) -> int:
    """Of a step: trained ones with their prompts, every row on its own; where responses are sampled, those alone."""
    size = bench.size(case)
    if case in DRAWN:
        return size.prompts * size.group * size.response_tokens
    return sum(len(group.prompt_ids) + len(r) for group in bench.groups(case) for r in group.responses)


def operations(bench: Bench, case: Case) -> float:
    """Of a step, forward and backward, and a forward pass of the reference where there is one."""
    forward = sum(
        forward_operations(
            bench.shape, len(group.prompt_ids), [len(r) for r in group.responses], scored=sum(map(len, group.responses))
        )
        for group in bench.groups(case)
    )
    return (1 + BACKWARD + (case in WITH_REFERENCE)) * forward
