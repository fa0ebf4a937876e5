"""Stage align: preferences into the policy, by the method that params.yaml names, and what the judge says of it.

A method learns from pairs, or by RL from the score of the reward model that was trained on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.arguments import no_arguments
from posttrain.config_align_rl import LearnedRl
from posttrain.engine.policy import Policy, frozen_copy, load_policy, save_policy
from posttrain.job import Job, open_job
from posttrain.loops.align_rl import align_by_reward
from posttrain.loops.heldout import describe
from posttrain.loops.judges import preference_pairs
from posttrain.loops.pairs import judged_win_rate
from posttrain.loops.preference import run_preference
from posttrain.loops.preference_methods import METHODS as PREFERENCE_METHODS
from posttrain.loops.rounds import Summary, run_rounds
from posttrain.loops.sample import Sample, sample_policy
from posttrain.loops.scoring import shared_score
from posttrain.records import Pair, Problem, read_jsonl

PAIRS = Path("data/preferences/pairs.jsonl")
REWARD_MODEL = Path("models/reward_model")


def answers(job: Job, policy: Policy, problems: list[Problem]) -> list[list[Sample]]:
    """Thinking answers to the held-out prompts, with the same draws for every policy."""
    return sample_policy(
        policy,
        problems,
        mode="think",
        samples=job.params.probe.samples,
        generation=job.params.probe.generation,
        seed=job.seed,
        engine=job.params.engine,
        machine=job.system,
    )


def fresh_pairs(job: Job, policy: Policy, number: int) -> list[Pair]:
    """Pairs of the policy's own answers to prompts drawn for this round, made and judged as in stage prefer."""
    section = job.params.prefer
    train = read_jsonl(Path("data/curated/train.jsonl"), Problem)
    groups = sample_policy(
        policy,
        random.Random(f"{job.seed}:{number}").sample(train, min(job.params.align.round_problems, len(train))),
        mode="think",
        samples=section.samples,
        generation=section.generation,
        seed=job.seed + number,
        engine=job.params.engine,
        machine=job.system,
    )
    return preference_pairs(groups, policy, section=section, engine=job.params.engine, seed=job.seed + number)


def divergence(policy: Policy, before: Policy, groups: Sequence[Sequence[Sample]], *, micro_batch_tokens: int) -> float:
    """KL(policy || before) in nats per response, estimated (k1) on samples of `policy`."""
    responses = [(s.rollout.prompt_ids, s.rollout.response_ids) for group in groups for s in group]
    sums = [
        sum(
            float(row.sum())
            for row in shared_score(p.model, responses, micro_batch_tokens=micro_batch_tokens, temperature=1)
        )
        for p in (policy, before)
    ]
    return (sums[0] - sums[1]) / len(responses)


def by_pairs(job: Job, policy: Policy, heldout: list[Problem]) -> dict[str, Any]:
    """Train `policy` on the pairs of stage prefer, then on fresh ones; of every round what held-out pairs say."""
    section = job.params.align

    def train(pairs: Sequence[Pair], number: int, done: int) -> Summary:
        return run_preference(
            policy,
            pairs,
            section=section,
            engine=job.params.engine,
            seed=job.seed + number,
            log=lambda metrics, step: job.log(metrics, step=done + step),
            note=lambda text: job.note(f"round {number}: {text}"),
            checkpoints=job.checkpoints / f"round-{number}",
            save_every=50,
            source=str(PAIRS) if number == 0 else f"round {number}",
        )

    rounds = run_rounds(
        policy,
        read_jsonl(PAIRS, Pair),
        rounds=section.rounds,
        fresh=lambda number: fresh_pairs(job, policy, number),
        train=train,
        checkpoints=job.checkpoints / "rounds",
    )
    return {"rounds": rounds}


def by_reward(job: Job, policy: Policy, heldout: list[Problem]) -> dict[str, Any]:
    """Train `policy` by RL on the reward model of stage reward_model; the run's report."""
    method = job.params.align.method
    assert isinstance(method, LearnedRl)
    summary = align_by_reward(
        policy,
        read_jsonl(Path("data/curated/train.jsonl"), Problem),
        heldout,
        section=method,
        optimizer=job.params.align.optimizer,
        grpo=job.params.grpo,
        folder=REWARD_MODEL,
        engine=job.params.engine,
        machine=job.system,
        seed=job.seed,
        log=lambda metrics, step: job.log(metrics, step=step, total=method.steps),
        checkpoints=job.checkpoints / "rl",
    )
    job.note(summary["sentence"])
    return {"rl": summary}


METHODS = dict.fromkeys(PREFERENCE_METHODS, by_pairs) | {"ppo": by_reward, "grpo_rm": by_reward}
"""What trains the policy and reports on it, by `align.method.kind`."""


def main() -> None:
    with open_job("align", parallel=True) as job:
        section = job.params.align
        policy = load_policy(Path("models/fuse"), precision=job.params.engine.precision)
        before = Policy(frozen_copy(policy.model), policy.tokenizer)
        everything = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        trained = METHODS[section.method.kind](job, policy, everything)
        heldout = everything[: section.win_problems]
        ours, theirs = answers(job, policy, heldout), answers(job, before, heldout)
        win = judged_win_rate(ours, theirs, seed=job.seed)
        with job.publish(Path("models/align")) as folder:
            save_policy(policy, folder)
        job.note(f"win rate over the fused model {win['value']:.3f} [{win['low']:.3f}, {win['high']:.3f}]")
        job.report(
            {
                "method": section.method.kind,
                "win_rate": win,
                "kl_sequence": divergence(
                    policy, before, ours, micro_batch_tokens=job.params.engine.micro_batch_tokens
                ),
                "samples": {"before": describe(theirs), "after": describe(ours)},
                **trained,
            }
        )


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
