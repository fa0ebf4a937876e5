"""Stage distill: a small student learns the teacher's verified answers, then writes and is pulled to the teacher."""

from __future__ import annotations

import copy
import random
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.chat.template import encode_example, install_template
from posttrain.curation.conversations import NO_THINK_FLAGS, THINK_FLAGS, no_think_example, think_example
from posttrain.engine.policy import Policy, count_parameters, load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.evals.intervals import paired_difference, resample
from posttrain.job import Job, open_job
from posttrain.loops.distill import run_distill
from posttrain.loops.heldout import describe
from posttrain.loops.rl import run_rl
from posttrain.loops.sample import Sample, sample_policy, sample_problems
from posttrain.loops.sft import run_sft
from posttrain.records import MODES, Conversation, Mode, Problem, read_jsonl


def teacher_examples(job: Job, teacher: Policy, problems: list[Problem]) -> list[Conversation]:
    """The teacher's right and well-formed answers in both modes, direct ones up to their share.

    A teacher is seldom right without thinking, so it is asked more often: a student that has not learnt the form of a
    direct answer does not learn it on-policy either, because reverse KL has no gradient where the student is sure.
    """
    section = job.params.distill
    engine = make_engine(teacher, job.params.engine, job.system)
    right: dict[Mode, list[Sample]] = {}
    asked: dict[Mode, int] = {"think": section.samples, "no_think": section.no_think_samples}
    for mode, samples in asked.items():
        groups = sample_problems(
            engine,
            teacher.tokenizer,
            problems,
            mode=mode,
            samples=samples,
            generation=section.generation,
            seed=job.seed,
        )
        right[mode] = [s for group in groups for s in group if s.correct and s.parts.well_formed and not s.mixed]
        job.note(f"teacher, {mode}: {len(right[mode])} of {len(problems) * samples} samples are right and well-formed")
    engine.close()
    if not right["think"]:
        raise StageError("no thinking sample of the teacher is right and well-formed, wanted at least one")
    rng = random.Random(job.seed)
    limit = round(len(right["think"]) * section.no_think_share / (1.0 - section.no_think_share))
    direct = rng.sample(right["no_think"], min(limit, len(right["no_think"])))
    return [
        *(
            think_example(
                s.problem, s.parts.thinking or "", s.problem.answer, name=f"think{i}", flag=rng.choice(THINK_FLAGS)
            )
            for i, s in enumerate(right["think"])
        ),
        *(
            no_think_example(s.problem, s.problem.answer, name=f"direct{i}", flag=rng.choice(NO_THINK_FLAGS))
            for i, s in enumerate(direct)
        ),
    ]


def answers(job: Job, policy: Policy, problems: list[Problem], mode: Mode) -> list[list[Sample]]:
    """Answers to the held-out problems, with the same draws for every model."""
    return sample_policy(
        policy,
        problems,
        mode=mode,
        samples=job.params.probe.samples,
        generation=job.params.probe.generation,
        seed=job.seed,
        engine=job.params.engine,
        machine=job.system,
    )


def difference(job: Job, ours: list[list[Sample]], theirs: list[list[Sample]]) -> dict[str, float]:
    """Accuracy of `ours` minus that of `theirs` on the same problems, with its interval over them."""
    rate, other = ([sum(s.correct for s in group) / len(group) for group in groups] for groups in (ours, theirs))
    return paired_difference(rate, other, resample(len(ours), draws=10000, seed=job.seed)).to_json()


def by_rl(job: Job, start: Policy, problems: list[Problem]) -> Policy:
    """The other way to a better student: RL on verified rewards from the same start, with as many samples.

    Nothing of it is kept but what it reaches, with which the on-policy phase is compared.
    """
    rl, distill = job.params.grpo, job.params.distill
    steps = distill.on_policy_steps * distill.prompts_per_step // (rl.prompts_per_step * rl.group_size)
    section = rl.model_copy(update={"steps": steps, "sampling": "uniform"})
    policy = Policy(copy.deepcopy(start.model), start.tokenizer)
    engine = make_engine(policy, job.params.engine, job.system)
    run_rl(
        policy,
        problems,
        section=section,
        rollouts=engine,
        engine=job.params.engine,
        seed=job.seed,
        log=lambda metrics, step: None,
        checkpoints=job.checkpoints / "rl",
        measure=dict,
        measure_at=(),
    )
    engine.close()
    job.note(f"the same student by RL: {steps} steps of {rl.prompts_per_step * rl.group_size} samples")
    return policy


def copied(job: Job, student: Policy, examples: list[Conversation]) -> dict[str, float]:
    """The off-policy phase: the student learns the teacher's answers by heart."""
    section = job.params.distill
    return run_sft(
        student,
        [encode_example(student.tokenizer, example) for example in examples],
        optimizer=section.sft_optimizer,
        epochs=section.sft_epochs,
        batch_tokens=section.batch_tokens,
        sequence_length=section.sequence_length,
        engine=job.params.engine,
        seed=job.seed,
        log=job.log,
        checkpoints=job.checkpoints / "sft",
        save_every=50,
    )


def main() -> None:
    with open_job("distill", parallel=True) as job:
        section, engine = job.params.distill, job.params.engine
        teacher = load_policy(Path("models/align"), precision=engine.precision)
        student = load_policy(Path("models/base_student"), precision=engine.precision)
        install_template(student.tokenizer)
        train = read_jsonl(Path("data/curated/train.jsonl"), Problem)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)[: section.look_problems]
        problems = random.Random(job.seed).sample(train, min(section.problems, len(train)))
        examples = teacher_examples(job, teacher, problems)
        off_policy = copied(job, student, examples)
        before = {mode: answers(job, student, heldout, mode) for mode in MODES}
        rl = answers(job, by_rl(job, student, problems), heldout, "think")
        rollouts = make_engine(student, engine, job.system)
        done = int(off_policy["steps"])
        on_policy = run_distill(
            student,
            teacher,
            problems,
            section=section,
            rollouts=rollouts,
            engine=engine,
            seed=job.seed,
            log=lambda metrics, step: job.log(metrics, step=done + step, total=done + section.on_policy_steps),
            checkpoints=job.checkpoints / "on_policy",
            save_every=20,
        )
        rollouts.close()
        after = {mode: answers(job, student, heldout, mode) for mode in MODES}
        with job.publish(Path("models/distill")) as folder:
            save_policy(student, folder)
        sizes = {"teacher": count_parameters(teacher.model), "student": count_parameters(student.model)}
        looks = {
            "before_on_policy": {mode: describe(before[mode]) for mode in MODES},
            "after_on_policy": {mode: describe(after[mode]) for mode in MODES},
            "by_rl": {"think": describe(rl)},
            "on_policy_gain": difference(job, after["think"], before["think"]),
            "on_policy_over_rl": difference(job, after["think"], rl),
        }
        parameters = {**sizes, "ratio": sizes["student"] / sizes["teacher"]}
        found = {"examples": len(examples), "off_policy": off_policy, "on_policy": on_policy, "heldout": looks}
        job.report({"parameters": parameters, **found})


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
