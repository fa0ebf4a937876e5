"""Sampling ahead of the trainer: a thread answers the prompts of later steps while this one is trained.

The schedule goes by the numbers of steps and never by a clock. Job j samples for step j, with the weights of version
max(0, j - lead), frozen when they were trained, however late the sampler gets to it; what a clock decides is who waits
for whom. So a run gives the same bits on every machine and after every interruption, and the price is that responses
are as stale as allowed even where the sampler is fast. Waits have a deadline, and an error of the thread is raised
where its groups are wanted.

With a budget of tokens per step (partial rollouts) a job lengthens every unfinished response by one segment; a group is
given once all its responses have ended, the oldest first. Several batches are under way at once, so that a step need
not wait for its longest response; where too few groups have ended all the same, it waits and samples further segments
with its own weights. Groups whose oldest token is more than `max_staleness` versions old are dropped, and their prompts
asked again.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from posttrain.config_asynchrony import BoundedAsync, Segments, most_stale, steps_ahead
from posttrain.config_fields import ConfigError
from posttrain.engine.distributed import world_size
from posttrain.engine.policy import frozen_copy
from posttrain.engine.rollout import Request
from posttrain.errors import StageError
from posttrain.loops.clock import Clock
from posttrain.loops.partial import can_go_on, extend
from posttrain.loops.rl_state import Learner
from posttrain.loops.rl_stream import Asker, Group, InTurn, Stream
from posttrain.records import Rollout
from posttrain.rl.sampling import PromptSampler

WAIT_SECONDS = 2 * 3600.0
"""Longest wait for a job: that of an engine for one request, and as much for the jobs before it."""
CLOSE_SECONDS = 5.0
"""Longest wait for what was begun when a run has ended in an error."""


@dataclass(frozen=True, slots=True)
class Done:
    """A job's groups, and the seconds it took and had to wait for its weights."""

    groups: list[Group]
    busy: float
    idle: float


class Worker:
    """A thread that does one job after the other. It dies with the process: a hung engine must not keep a stage up."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], list[Group]], Future[Done]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], list[Group]]) -> Future[Done]:
        future: Future[Done] = Future()
        self._jobs.put((work, future))
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        free = time.perf_counter()
        while (job := self._jobs.get()) is not None:
            work, future = job
            start = time.perf_counter()
            try:
                groups = work()
            except BaseException as error:  # belongs to whoever asks for the groups
                future.set_exception(error)
            else:
                future.set_result(Done(groups, time.perf_counter() - start, start - free))
            free = time.perf_counter()


@dataclass(slots=True)
class Waiting:
    """Groups between being begun and being given."""

    ready: list[Group] = field(default_factory=list)
    running: list[Group] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    """Problems of dropped groups, to be asked once more."""

    def take(self, groups: Sequence[Group], limit: int) -> None:
        """Sort what came back by whether any of a group's responses can go on."""
        for group in groups:
            unfinished = any(can_go_on(rollout, limit) for rollout in group.rollouts)
            (self.running if unfinished else self.ready).append(group)

    def drop(self, oldest: int) -> int:
        """Groups with tokens older than version `oldest` make way for their prompts; returns how many responses."""
        old = [group for group in (*self.ready, *self.running) if group.oldest < oldest]
        self.again += [group.index for group in old]
        self.ready = [group for group in self.ready if group.oldest >= oldest]
        self.running = [group for group in self.running if group.oldest >= oldest]
        return sum(len(group.rollouts) for group in old)

    def give(self, count: int) -> list[Group]:
        """`count` finished groups, those with the oldest tokens first; the order of sampling otherwise."""
        self.ready.sort(key=lambda group: group.oldest)
        given, self.ready = self.ready[:count], self.ready[count:]
        return given


class Ahead:
    """Stream of a thread that samples ahead; for one process."""

    def __init__(self, asker: Asker, sampler: PromptSampler, learner: Learner, *, seed: int) -> None:
        section = asker.section
        choice = section.asynchrony
        self.metrics: Mapping[str, float] = {}
        self._asker, self._sampler, self._learner, self._seed = asker, sampler, learner, seed
        self._lead, self._most_stale = steps_ahead(choice), most_stale(choice)
        segments = choice.partial if isinstance(choice, BoundedAsync) else None
        self._limit = section.generation.max_new_tokens
        self._budget = min(segments.tokens, self._limit) if isinstance(segments, Segments) else None
        self._goes_on = self._limit if self._budget else 0
        """Tokens below which a response that has not ended can go on."""
        self._batches = segments.batches if isinstance(segments, Segments) else 1
        """Under way at once."""
        self._stop_ids = asker.stop_ids()
        self._copies: deque[PreTrainedModel] = deque()
        self._waiting = Waiting()
        self._jobs: dict[int, Future[Done]] = {}
        self._asked_again: dict[int, int] = {}
        """Job -> prompts asked once more in it."""
        self._next = self._begun = 0
        """Next job, and batches begun."""
        self._worker = Worker()

    def groups(self, step: int, number: int, clock: Clock) -> list[Group]:
        section, waiting = self._asker.section, self._waiting
        self._submit(max(step, self._lead - 1), version=step)
        with clock("wait_sampler"):
            done = self._result(self._jobs.pop(step))
            waiting.take(done.groups, self._goes_on)
            dropped = waiting.drop(step - self._most_stale)
            again = self._asked_again.pop(step, 0)
            rounds = 1
            while len(waiting.ready) < section.prompts_per_step:
                again += len(waiting.again)
                self._sample_now(step, rounds)
                rounds += 1
        clock.add("generate", done.busy)
        clock.add("wait_trainer", done.idle)
        given = waiting.give(section.prompts_per_step)
        self.metrics = self._describe(given, step) | {
            "rollout/dropped": float(dropped),
            "rollout/asked_again": float(again),
            "rollout/segments": float(rounds),
            "rollout/waiting": float(len(waiting.ready) + len(waiting.running)),
        }
        return given

    def launch(self, step: int) -> None:
        self._submit(step + self._lead, version=step)

    def sync(self, version: int, *, look: bool) -> None:
        if look:
            self._finish_jobs()
            self._asker.rollouts.load_weights(self._learner.trainer.model, version)

    def state_dict(self) -> dict[str, Any]:
        """Waits for the sampler: what was begun is kept as what came out of it."""
        self._finish_jobs()
        waiting = self._waiting
        return {
            "jobs": {job: pack(future.result().groups) for job, future in self._jobs.items()},
            "ready": pack(waiting.ready),
            "running": pack(waiting.running),
            "again": list(waiting.again),
            "asked_again": dict(self._asked_again),
            "next": self._next,
            "begun": self._begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for job, packed in state["jobs"].items():
            self._jobs[job] = Future()
            self._jobs[job].set_result(Done(unpack(packed), 0.0, 0.0))
        self._waiting = Waiting(unpack(state["ready"]), unpack(state["running"]), list(state["again"]))
        self._asked_again = dict(state["asked_again"])
        self._next, self._begun = state["next"], state["begun"]

    def close(self) -> None:
        self._worker.close()

    def _submit(self, last: int, *, version: int) -> None:
        """All jobs up to `last` that are not under way, with the weights as they are now."""
        section = self._asker.section
        for job in range(self._next, min(last, section.steps - 1) + 1):
            drawn = self._draw(job)
            running, self._waiting.running = self._waiting.running, []
            work = partial(self._work, f"{self._seed}:{job}:0", drawn, self._asker.requests(drawn), running)
            self._jobs[job] = self._worker.submit(partial(self._with, self._frozen(), version, work))
            self._next = job + 1

    def _draw(self, job: int) -> list[int]:
        """Problems to begin in a job: those to be asked again, and as many batches as may be under way."""
        section = self._asker.section
        new = range(self._begun, min(job + self._batches if job else 1, section.steps))
        self._begun += len(new)
        again, self._waiting.again = self._waiting.again, []
        self._asked_again[job] = len(again)
        return again + [i for _ in new for i in self._sampler.draw(section.prompts_per_step, step=job)]

    def _frozen(self) -> PreTrainedModel:
        """The trainer's weights, in a copy that no job under way needs: there are as many as jobs at once."""
        if len(self._copies) < max(1, self._lead):
            with self._learner.reference.reading() as reference:
                copy = frozen_copy(reference)
        else:
            copy = self._copies.popleft()
        copy.load_state_dict(self._learner.trainer.model.state_dict())
        self._copies.append(copy)
        return copy

    def _with(self, model: PreTrainedModel, version: int, work: Callable[[], list[Group]]) -> list[Group]:
        self._asker.rollouts.load_weights(model, version)
        return work()

    def _work(
        self, seed: str, drawn: Sequence[int], requests: Sequence[Request], running: Sequence[Group]
    ) -> list[Group]:
        """Begin the groups of `drawn`, and lengthen those of `running`."""
        asker, tokens = self._asker, self._budget or self._limit
        begun = asker.ask(drawn, requests, seed, stop_ids=self._stop_ids, tokens=tokens) if drawn else []
        if not running:
            return begun
        longer = iter(
            extend(
                asker.rollouts,
                [rollout for group in running for rollout in group.rollouts],
                budget=tokens,
                generation=asker.section.generation,
                seed=random.Random(f"{seed}:on").getrandbits(31),
                stop_ids=self._stop_ids,
            )
        )
        return [Group(group.index, tuple(next(longer) for _ in group.rollouts)) for group in running] + begun

    def _sample_now(self, step: int, number: int) -> None:
        """One more segment while the trainer waits, with its newest weights."""
        waiting = self._waiting
        drawn, waiting.again = waiting.again, []
        running, waiting.running = waiting.running, []
        if self._asker.rollouts.version != step:
            self._asker.rollouts.load_weights(self._learner.trainer.model, step)
        groups = self._work(f"{self._seed}:{step}:{number}", drawn, self._asker.requests(drawn), running)
        waiting.take(groups, self._goes_on)

    def _describe(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Ages of the tokens, in updates: their mean, the largest, and how many there are of each."""
        behind = Counter(step - v for group in groups for r in group.rollouts for v in r.version_per_token)
        return {
            "rollout/staleness": sum(age * count for age, count in behind.items()) / behind.total(),
            "rollout/staleness_max": float(max(behind)),
            **{f"rollout/tokens_behind_{age}": float(behind[age]) for age in range(self._most_stale + 1)},
        }

    def _result(self, future: Future[Done]) -> Done:
        try:
            return future.result(WAIT_SECONDS)
        except TimeoutError as error:
            if future.done():  # the job's own
                raise
            raise StageError(f"the sampler has not answered within {WAIT_SECONDS:.0f} s") from error

    def _finish_jobs(self) -> None:
        for future in self._jobs.values():
            self._result(future)


def make_stream(asker: Asker, sampler: PromptSampler, learner: Learner, seed: int) -> Stream:
    """What the section's `asynchrony` asks for; raises ConfigError where several processes would have to agree."""
    kind = asker.section.asynchrony.kind
    if kind == "sync":
        return InTurn(asker, sampler, learner, seed=seed)
    if world_size() > 1:
        raise ConfigError(
            f"asynchrony: got '{kind}' with {world_size()} processes, wanted 'sync', or processes: 1 in system.yaml "
            "(servers share the sampling there too)"
        )
    return Ahead(asker, sampler, learner, seed=seed)


def pack(groups: Sequence[Group]) -> list[tuple[int, list[dict[str, Any]]]]:
    """As a checkpoint can hold them."""
    return [(group.index, [asdict(rollout) for rollout in group.rollouts]) for group in groups]


def unpack(packed: Sequence[tuple[int, list[dict[str, Any]]]]) -> list[Group]:
    return [Group(index, tuple(Rollout(**values) for values in rollouts)) for index, rollouts in packed]
