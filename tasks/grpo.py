"""Stage grpo: reinforcement learning on verifiable rewards; the length reward starts late, when most is right."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import ConfigError
from posttrain.engine.policy import load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.job import open_job
from posttrain.loops.heldout import look_at_heldout
from posttrain.loops.rl import run_rl
from posttrain.records import Problem, read_jsonl


def main() -> None:
    with open_job("grpo") as job:
        section = job.params.grpo
        if section.method != "rl":
            raise ConfigError(f"grpo.method: got '{section.method}', wanted 'rl': this stage has no other yet")
        policy = load_policy(Path("models/sft"), precision=job.params.engine.precision)
        problems = read_jsonl(Path("data/graded/problems.jsonl"), Problem)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        engine = make_engine(policy, job.params.engine, job.system)

        def on_heldout() -> dict[str, float]:
            return look_at_heldout(
                engine,
                policy.tokenizer,
                heldout,
                mode="think",
                samples=section.eval_samples,
                generation=section.generation,
                seed=job.seed,
            )

        start = section.rewards["length"].start if "length" in section.rewards else 0
        summary = run_rl(
            policy,
            problems,
            section=section,
            rollouts=engine,
            engine=job.params.engine,
            seed=job.seed,
            log=lambda metrics, step: job.log(metrics, step=step, total=section.steps),
            checkpoints=job.checkpoints,
            measure=on_heldout,
            measure_at={0, start, section.steps} | set(range(section.eval_every, section.steps, section.eval_every)),
        )
        engine.close()
        with job.publish(Path("models/grpo")) as folder:
            save_policy(policy, folder)
        job.report({"length_reward_start": start, **summary})


if __name__ == "__main__":
    main()
