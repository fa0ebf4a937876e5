"""Stage sft: long-CoT cold start of the base model, on few and long-winded traces."""

from __future__ import annotations

import random
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.chat.template import encode_example, install_template
from posttrain.engine.policy import load_policy, save_policy
from posttrain.engine.rollout import make_engine
from posttrain.job import open_job
from posttrain.loops.heldout import look_at_heldout
from posttrain.loops.sft import run_sft
from posttrain.records import Conversation, Problem, read_jsonl


def main() -> None:
    with open_job("sft", parallel=True) as job:
        section = job.params.sft
        policy = load_policy(Path("models/base"), precision=job.params.engine.precision)
        install_template(policy.tokenizer)
        traces = read_jsonl(Path("data/curated/traces.jsonl"), Conversation)
        heldout = read_jsonl(Path("data/curated/heldout.jsonl"), Problem)
        chosen = random.Random(job.seed).sample(traces, min(section.examples, len(traces)))
        summary = run_sft(
            policy,
            [encode_example(policy.tokenizer, conversation) for conversation in chosen],
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
        engine = make_engine(policy, job.params.engine, job.system)
        look = look_at_heldout(
            engine,
            policy.tokenizer,
            heldout[: job.params.probe.problems],
            mode="think",
            samples=job.params.probe.samples,
            generation=job.params.probe.generation,
            seed=job.seed,
        )
        engine.close()
        with job.publish(Path("models/sft")) as folder:
            save_policy(policy, folder)
        job.report({"examples": len(chosen), **summary, "heldout": look})


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
