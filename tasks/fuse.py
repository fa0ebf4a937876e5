"""Stage fuse: one model, two modes. Continual fine-tuning on the model's own right thoughts and on direct answers."""

from __future__ import annotations

import random
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.chat.template import encode_example
from posttrain.curation.conversations import NO_THINK_FLAGS, THINK_FLAGS, no_think_example, think_example
from posttrain.engine.policy import load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.job import Job, open_job
from posttrain.loops.heldout import look_at_heldout
from posttrain.loops.sample import Sample, sample_problems
from posttrain.loops.select import CHOICES
from posttrain.loops.sft import run_sft
from posttrain.records import MODES, Conversation, Problem, read_jsonl


def thoughts(job: Job, groups: list[list[Sample]]) -> tuple[list[Conversation], float]:
    """Rejection sampling: right, well-formed, in one script; and the mean tokens of the responses they are from."""
    rng = random.Random(job.seed)
    select = CHOICES[job.params.fuse.select]
    fit = [[s for s in g if s.correct and s.parts.well_formed and not s.mixed and s.parts.thinking] for g in groups]
    kept = [s for group in fit for s in select(group)]
    if not kept:
        samples = sum(len(group) for group in groups)
        raise StageError(f"none of {samples} samples is right and well-formed, wanted at least one")
    examples = [
        think_example(
            s.problem, s.parts.thinking or "", s.problem.answer, name=f"think{i}", flag=rng.choice(THINK_FLAGS)
        )
        for i, s in enumerate(kept)
    ]
    return examples, sum(s.tokens for s in kept) / len(kept)


def direct_answers(job: Job, problems: list[Problem], count: int) -> list[Conversation]:
    """Gold answers without thinking, asked for by a flag or by the hard switch."""
    rng = random.Random(job.seed + 1)
    picked = rng.sample(problems, min(count, len(problems)))
    return [no_think_example(p, p.answer, name="direct", flag=rng.choice(NO_THINK_FLAGS)) for p in picked]


def main() -> None:
    with open_job("fuse", parallel=True) as job:
        section = job.params.fuse
        policy = load_policy(Path("models/grpo"), precision=job.params.engine.precision)
        problems = read_jsonl(Path("data/curated/train.jsonl"), Problem)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        engine = make_engine(policy, job.params.engine, job.system)
        groups = sample_problems(
            engine,
            policy.tokenizer,
            problems[: section.problems],
            mode="think",
            samples=section.samples,
            generation=section.generation,
            seed=job.seed,
        )
        think, thought_tokens = thoughts(job, groups)
        wanted = round(len(think) * section.no_think_share / (1.0 - section.no_think_share))
        direct = direct_answers(job, problems, wanted)
        job.note(f"{len(think)} thoughts kept of {len(groups) * section.samples}, {len(direct)} direct answers")
        summary = run_sft(
            policy,
            [encode_example(policy.tokenizer, conversation) for conversation in [*think, *direct]],
            optimizer=section.optimizer,
            epochs=section.epochs,
            batch_tokens=section.batch_tokens,
            sequence_length=section.sequence_length,
            engine=job.params.engine,
            seed=job.seed,
            log=job.log,
            checkpoints=job.checkpoints,
            save_every=50,
        )
        engine.load_weights(policy.model, version=1)
        probe = job.params.probe
        look = {
            mode: look_at_heldout(
                engine,
                policy.tokenizer,
                heldout[: probe.problems],
                mode=mode,
                samples=probe.samples,
                generation=probe.generation,
                seed=job.seed,
            )
            for mode in MODES
        }
        engine.close()
        with job.publish(Path("models/fuse")) as folder:
            save_policy(policy, folder)
        kept = len(think) / (len(groups) * section.samples)
        counts = {
            "thoughts": len(think),
            "thoughts_kept": kept,
            "thought_tokens": thought_tokens,
            "direct": len(direct),
        }
        job.report({**counts, **summary, "heldout": look})


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
