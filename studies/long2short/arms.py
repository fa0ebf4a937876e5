"""The models of the study: the long and the short one, and what each way makes of the long one.

An arm is a function of the bench, returns a policy, and trains a fresh copy of the long model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.chat.template import encode_example, install_template
from posttrain.config import Params, Rl
from posttrain.curation.conversations import trace_conversations
from posttrain.engine.merge import merge
from posttrain.engine.policy import Policy, load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.evals.annotators import AS_JUDGED
from posttrain.loops.pairs import make_pairs, rule_judge
from posttrain.loops.preference import run_preference
from posttrain.loops.rft import trained_on
from posttrain.loops.rl import run_rl
from posttrain.loops.sample import Sample, sample_problems
from posttrain.loops.select import CHOICES, is_right
from posttrain.loops.sft import run_sft
from posttrain.records import Problem
from posttrain.system import System
from studies.long2short.plan import Study, Tuned, dpo_section, long_section, short_section

SAVE_EVERY = 10**9
"""Steps between checkpoints: an arm takes about a minute and starts again when it was interrupted."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share."""

    params: Params
    study: Study
    machine: System
    seed: int
    train: Sequence[Problem]
    graded: Sequence[Problem]
    heldout: Sequence[Problem]
    work: Path
    """Folder for the models of the study; nothing of it is kept."""
    log: Callable[[dict[str, float], int], None]

    def load(self, folder: Path) -> Policy:
        return load_policy(folder, precision=self.params.engine.precision)

    def long(self) -> Policy:
        """A fresh copy of the long model."""
        return self.load(self.work / "long")

    def short(self) -> Policy:
        """A fresh copy of the short model."""
        return self.load(self.work / "short")

    def answers(self, policy: Policy, problems: Sequence[Problem], *, samples: int, draw: int) -> list[list[Sample]]:
        """Thinking answers under the study's token limit; equal draws of two policies are comparable."""
        engine = make_engine(policy, self.params.engine, self.machine)
        groups = sample_problems(
            engine,
            policy.tokenizer,
            problems,
            mode="think",
            samples=samples,
            generation=self.study.samples.generation,
            seed=self.seed + draw,
        )
        engine.close()
        return groups


def make_long(bench: Bench) -> None:
    """RL from models/sft by stage grpo's recipe, without any reward for brevity."""
    policy = bench.load(Path("models/sft"))
    _reinforce(bench, policy, long_section(bench.params.grpo, bench.study.long), "long")
    save_policy(policy, bench.work / "long")


def make_short(bench: Bench) -> None:
    """Another cold start of models/base: on traces without detours, checks and remarks."""
    section = bench.study.short
    policy = bench.load(Path("models/base"))
    install_template(policy.tokenizer)
    traces = trace_conversations(bench.train, section.traces, per_problem=1, seed=bench.seed)
    chosen = random.Random(bench.seed).sample(traces, min(section.examples, len(traces)))
    _tune(bench, policy, [encode_example(policy.tokenizer, trace) for trace in chosen], section, "short")
    save_policy(policy, bench.work / "short")


def long_samples(bench: Bench) -> list[list[Sample]]:
    """Several answers of the long model to training problems, from which three arms learn."""
    section = bench.study.samples
    problems = random.Random(bench.seed).sample(list(bench.train), min(section.problems, len(bench.train)))
    return bench.answers(bench.long(), problems, samples=section.per_problem, draw=1)


def merged(bench: Bench, samples: Sequence[Sequence[Sample]]) -> Policy:
    """Weights between the long and the short model, without training."""
    return merge(bench.long(), bench.short(), share=bench.study.merge.share)


def selected(bench: Bench, samples: Sequence[Sequence[Sample]], *, select: str) -> Policy:
    """Supervised training on one right answer per problem."""
    policy = bench.long()
    fit = [[sample for sample in group if is_right(sample) and not sample.mixed] for group in samples]
    kept = [sample for group in fit for sample in CHOICES[select](group)]
    if not kept:
        raise StageError(f"{select}: no answer of the long model is right, wanted at least one")
    _tune(bench, policy, [trained_on(sample) for sample in kept], bench.study.tuned, select)
    return policy


def preferred(bench: Bench, samples: Sequence[Sequence[Sample]]) -> Policy:
    """DPO on the shortest right answer against long ones."""
    section = bench.study.dpo
    policy = bench.long()
    pairs = make_pairs(
        samples,
        judge=rule_judge("shortest"),
        annotate=AS_JUDGED,
        per_problem=section.max_pairs_per_problem,
        heldout_share=0.0,
        seed=bench.seed,
    )
    run_preference(
        policy,
        pairs,
        section=dpo_section(bench.params.align, section),
        engine=bench.params.engine,
        seed=bench.seed,
        log=bench.log,
        note=print,
        checkpoints=bench.work / "dpo",
        save_every=SAVE_EVERY,
        source="samples",
    )
    return policy


def reinforced(bench: Bench, samples: Sequence[Sequence[Sample]]) -> Policy:
    """RL with the length term, under a lower limit of tokens."""
    policy = bench.long()
    _reinforce(bench, policy, short_section(bench.params.grpo, bench.study.rl), "rl")
    return policy


Arm = Callable[[Bench, Sequence[Sequence[Sample]]], Policy]

ARMS: Mapping[str, Arm] = {
    "merge": merged,
    "shortest": lambda bench, samples: selected(bench, samples, select="shortest"),
    "first": lambda bench, samples: selected(bench, samples, select="first"),
    "dpo": preferred,
    "rl": reinforced,
}
"""`first` is no way to be short: it says what the same training does when any right answer is taken."""


def _reinforce(bench: Bench, policy: Policy, section: Rl, name: str) -> None:
    rollouts = make_engine(policy, bench.params.engine, bench.machine)
    run_rl(
        policy,
        bench.graded,
        section=section,
        rollouts=rollouts,
        engine=bench.params.engine,
        seed=bench.seed,
        log=bench.log,
        checkpoints=bench.work / f"checkpoints-{name}",
        measure=dict,
        measure_at=(),
    )
    rollouts.close()


def _tune(bench: Bench, policy: Policy, examples: Sequence[Any], section: Tuned, name: str) -> None:
    run_sft(
        policy,
        examples,
        optimizer=section.optimizer,
        epochs=section.epochs,
        batch_tokens=section.batch_tokens,
        sequence_length=section.sequence_length,
        engine=bench.params.engine,
        seed=bench.seed,
        log=bench.log,
        checkpoints=bench.work / f"checkpoints-{name}",
        save_every=SAVE_EVERY,
    )
