"""Stage reward_model: a Bradley-Terry head on the fused model, judged on pairs of prompts it has not seen."""

from __future__ import annotations

from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.engine.policy import Policy, load_policy, save_policy
from posttrain.job import open_job
from posttrain.loops.pairs import check_pairs
from posttrain.loops.reward_model import TOO_MANY_EPOCHS, run_reward_model
from posttrain.records import Pair, read_jsonl


def main() -> None:
    with open_job("reward_model", parallel=True) as job:
        section = job.params.reward_model
        policy = load_policy(Path("models/fuse"), precision=job.params.engine.precision)
        path = Path("data/preferences/pairs.jsonl")
        pairs = read_jsonl(path, Pair)
        check_pairs(pairs, str(path))
        if section.epochs > TOO_MANY_EPOCHS:
            job.note(f"warning: {section.epochs:g} epochs; a reward model overfits its pairs within one or two")
        model, summary = run_reward_model(
            policy,
            pairs,
            section=section,
            engine=job.params.engine,
            seed=job.seed,
            log=job.log,
            checkpoints=job.checkpoints,
            save_every=50,
        )
        with job.publish(Path("models/reward_model")) as folder:
            save_policy(Policy(model, policy.tokenizer), folder)
        job.report(summary)


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
