"""python -m benchmarks.async_simulator [--samples FILE] [--page]: what asynchrony would be worth, before it is tried.

An event-driven simulation of the modes of `grpo.asynchrony` on a pool of samplers beside one trainer that grows with
it, from a measured distribution of response lengths and measured speeds. It follows posttrain.loops.rl_ahead: which
weights a job has and what it waits for are the same rules, and only times are made up. `--page` writes the table into
docs/asynchrony.md.

What is left out: verification, looks at held-out problems, checkpoints, and that a sampler decodes faster the fewer
responses it has left. Sampler and trainer have machines of their own in every mode, in turns too.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from posttrain.errors import StageError
from posttrain.files import write_atomic
from posttrain.records import DataError, Rollout, read_jsonl

PAGE = Path("docs/asynchrony.md")
START, END = "<!-- simulation -->\n", "<!-- end of simulation -->\n"
WORKERS = (1, 32, 1024)


@dataclass(frozen=True, slots=True)
class Plant:
    """Machines and their speeds, in seconds."""

    workers: int
    slots: int
    """Responses that a worker samples at once."""
    decode: float
    """For the next token of all of a worker's responses."""
    prefill: float
    """Per token that a response which goes on has already, with one worker: its keys and values are made anew."""
    load: float
    """For new weights, once per job."""
    train: float
    """Per token trained, with one worker; the trainer grows with the workers."""


@dataclass(frozen=True, slots=True)
class Mode:
    name: str
    lead: int
    """Steps for which is being sampled before they are trained."""
    budget: int | None = None
    """Tokens of a response per job; None: all."""
    batches: int = 1
    """Under way at once."""


MODES = (
    Mode("sync", 0),
    Mode("one_step_off", 1),
    Mode("async, max_staleness 4", 4),
    Mode("async, segments of 80 tokens, 2 batches", 1, budget=80, batches=2),
)


@dataclass(slots=True)
class Group:
    """Of one prompt."""

    lengths: list[int]
    began: int
    """Version of the weights of its first tokens."""
    done: int = 0
    """Tokens that each response has, as far as it is that long."""

    @property
    def ended(self) -> bool:
        return self.done >= max(self.lengths)


@dataclass(slots=True)
class Result:
    steps: int = 0
    seconds: float = 0.0
    sampling: float = 0.0
    """Seconds in which a slot sampled, summed over slots and divided by their number."""
    training: float = 0.0
    begun: int = 0
    """Groups, of which so many were trained, and so many had not been when it ended."""
    trained: int = 0
    left: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    ages: list[int] = field(default_factory=list)
    """Updates between the first token of each group and its training."""


def makespan(tasks: Sequence[float], slots: int) -> float:
    """When the last of the tasks ends, each taken in order by the slot that is free first."""
    if len(tasks) <= slots:
        return max(tasks, default=0.0)
    free = [0.0] * slots
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


class Run:
    """One simulated run. Times of the sampler and of the trainer go on separately, and meet where one waits."""

    def __init__(self, plant: Plant, mode: Mode, *, prompts: int, steps: int, groups: Iterator[list[int]]) -> None:
        self._plant, self._mode, self._prompts, self._steps, self._groups = plant, mode, prompts, steps, groups
        self._running: list[Group] = []
        self._ready: list[Group] = []
        self._begun = 0
        self.result = Result(steps=steps)

    def __call__(self) -> Result:
        mode, result = self._mode, self.result
        sampler = trained = 0.0  # when the sampler has ended its job, and the trainer its update
        versions: list[float] = []  # when the weights of a version were frozen: its step had its batch
        ends: list[float] = []
        for step in range(self._steps):
            for job in range(len(ends), min(max(step, step - 1 + mode.lead), self._steps - 1) + 1):
                version = max(0, job - mode.lead)
                weights = versions[version] if version < len(versions) else trained
                sampler = max(sampler, weights) + self._job(job, version)
                ends.append(sampler)
            start = max(trained, ends[step])
            if len(self._ready) < self._prompts:
                start += self._plant.load
                while len(self._ready) < self._prompts:
                    start += self._segment([], step)
                sampler = start
            versions.append(start)
            update = self._take(step) * self._plant.train / self._plant.workers
            trained = start + update
            result.training += update
        result.seconds = trained
        result.left = len(self._ready) + len(self._running)
        return result

    def _job(self, job: int, version: int) -> float:
        """Seconds of a job, which begins as many batches as may be under way."""
        wanted = min(job + self._mode.batches if job else 1, self._steps)
        new = [Group(next(self._groups), version) for _ in range((wanted - self._begun) * self._prompts)]
        self._begun = max(wanted, self._begun)
        self.result.begun += len(new)
        return self._plant.load + self._segment(new, version)

    def _segment(self, new: list[Group], version: int) -> float:
        """Seconds in which every unfinished response gets its next tokens."""
        plant = self._plant
        tasks: list[float] = []
        again = 0
        for group in (*self._running, *new):
            tokens = max(group.lengths) if self._mode.budget is None else self._mode.budget
            for length in group.lengths:
                if (more := min(length - group.done, tokens)) > 0:
                    tasks.append(more * plant.decode)
                    again += group.done
                    self.result.sampled_tokens += more
            group.done += tokens
        open_groups = [*self._running, *new]
        self._ready += [group for group in open_groups if group.ended]
        self._running = [group for group in open_groups if not group.ended]
        self.result.sampling += sum(tasks) / (plant.workers * plant.slots)
        return makespan(tasks, plant.workers * plant.slots) + again * plant.prefill / plant.workers

    def _take(self, step: int) -> int:
        """Tokens of a step's batch: the groups that were begun first."""
        self._ready.sort(key=lambda group: group.began)
        batch, self._ready = self._ready[: self._prompts], self._ready[self._prompts :]
        tokens = sum(sum(group.lengths) for group in batch)
        self.result.trained += len(batch)
        self.result.trained_tokens += tokens
        self.result.ages += [step - group.began for group in batch]
        return tokens


def simulate(plant: Plant, mode: Mode, *, prompts: int, steps: int, groups: Iterator[list[int]]) -> Result:
    """`steps` steps of `prompts` groups each, whose lengths in tokens `groups` gives."""
    return Run(plant, mode, prompts=prompts, steps=steps, groups=groups)()


def measured_groups(path: Path) -> list[list[int]]:
    """Lengths of the responses of `path` (of stage grade), by problem."""
    lengths: dict[str, list[int]] = {}
    for rollout in read_jsonl(path, Rollout):
        lengths.setdefault(rollout.problem_id, []).append(len(rollout.response_ids))
    return list(lengths.values())


def drawn(groups: Sequence[list[int]], seed: int) -> Iterator[list[int]]:
    """Problems at random, again and again, each with its own lengths: those of one problem are alike."""
    rng = random.Random(seed)
    while True:
        yield rng.choice(groups)


def table(groups: Sequence[list[int]], plant: Plant, *, prompts: int, steps: int, seed: int) -> str:
    """The modes for pools of growing size, the batch growing with them."""
    lines = [
        "| workers | mode | samplers busy | trainer busy | speed | staleness, mean and largest |",
        "|---|---|---|---|---|---|",
    ]
    for workers in WORKERS:
        pool, turns = replace(plant, workers=workers), 0.0
        for mode in MODES:
            found = simulate(pool, mode, prompts=prompts * workers, steps=steps, groups=drawn(groups, seed))
            turns = turns or found.seconds
            lines.append(
                f"| {workers:,} | {mode.name} | {found.sampling / found.seconds:.0%} | "
                f"{found.training / found.seconds:.0%} | {turns / found.seconds:.2f} | "
                f"{sum(found.ages) / len(found.ages):.1f}, {max(found.ages)} |"
            )
    return "\n".join(lines) + "\n"


def inputs(groups: Sequence[list[int]], plant: Plant, *, samples: Path, prompts: int, steps: int) -> str:
    """The sentence without which the table means nothing."""
    lengths = sorted(length for group in groups for length in group)
    return (
        f"SIMULATION, not a measurement. Lengths: {len(lengths):,} responses to {len(groups):,} problems of "
        f"`{samples}` (mean {sum(lengths) / len(lengths):.1f} tokens, median {lengths[len(lengths) // 2]}, 95 % "
        f"{lengths[int(0.95 * len(lengths))]}, longest {lengths[-1]}). Seconds: {plant.decode:g} per token of all "
        f"{plant.slots} responses of a worker, {plant.prefill:g} per token read again, {plant.load:g} per load of "
        f"weights, {plant.train:g} per trained token and worker. {prompts} prompts per worker and step, {steps} steps; "
        "busy is the share of the time in which tokens come out; the speed of `sync` is 1.\n"
    )


def parser() -> argparse.ArgumentParser:
    """Defaults: the medians of 50 steps of stage grpo, profile tiny, on two cores (`time/*` in MLflow).

    There 2.6 s sampled 256 responses, the longest of about 150 tokens, and 2.9 s trained 16,600 tokens. Reading is
    taken for a third of training.
    """
    made = argparse.ArgumentParser(prog="python -m benchmarks.async_simulator", description=__doc__)
    made.add_argument("--samples", type=Path, default=Path("data/graded/samples.jsonl"), help="lengths come from here")
    made.add_argument("--prompts", type=int, default=32, help="per worker and step")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--slots", type=int, default=256, help="responses that a worker samples at once")
    made.add_argument("--decode", type=float, default=0.017, help="s per token of all of a worker's responses")
    made.add_argument("--prefill", type=float, default=0.00006, help="s per token of a continued response")
    made.add_argument("--load", type=float, default=0.06, help="s per load of weights")
    made.add_argument("--train", type=float, default=0.00018, help="s per trained token, with one worker")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--page", action="store_true", help=f"write the table into {PAGE}")
    return made


def main(arguments: list[str] | None = None) -> int:
    wanted = parser().parse_args(arguments)
    try:
        groups = measured_groups(wanted.samples)
    except (DataError, OSError, StageError) as error:
        print(f"async_simulator: {error}", file=sys.stderr)
        return 2
    plant = Plant(1, wanted.slots, wanted.decode, wanted.prefill, wanted.load, wanted.train)
    sizes = {"prompts": wanted.prompts, "steps": wanted.steps}
    faster = replace(plant, train=plant.train / 3, slots=2 * plant.slots)
    text = "\n".join(
        (
            inputs(groups, plant, samples=wanted.samples, **sizes),
            table(groups, plant, seed=wanted.seed, **sizes),
            f"SIMULATION where sampling takes longest: a trainer three times as fast, {faster.slots} slots each.\n",
            table(groups, faster, seed=wanted.seed, **sizes),
        )
    )
    print(text, end="")
    if wanted.page:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(START)
        write_atomic(PAGE, before + START + text + END + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
