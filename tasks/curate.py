"""Stage curate: problems worth training on, a held-out set that nothing has seen, and long-CoT traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.arguments import no_arguments
from posttrain.chat.split import extract_answer
from posttrain.chat.template import decode_ids, direct_prompt, special_id
from posttrain.config import Generation
from posttrain.curation.conversations import trace_conversations
from posttrain.curation.pipeline import curate
from posttrain.curation.sources import load_sources
from posttrain.engine.policy import Policy, load_policy
from posttrain.engine.rollout import Request, make_engine
from posttrain.job import Job, open_job
from posttrain.loops.verification import verify
from posttrain.records import Problem, json_rows, write_jsonl

GUESS_TOKENS = 12


def guesses(job: Job, policy: Policy, problems: Sequence[Problem]) -> Mapping[str, list[str | None]]:
    """Answers of the base model without reasoning, several per problem."""
    section = job.params.curate.guess
    engine = make_engine(policy, job.params.engine, job.system)
    requests = [Request(problem.id, tuple(direct_prompt(policy.tokenizer, problem.prompt))) for problem in problems]
    rollouts = engine.generate(
        requests,
        samples=section.samples,
        generation=Generation(temperature=section.temperature, max_new_tokens=GUESS_TOKENS),
        seed=job.seed,
        stop_ids=(special_id(policy.tokenizer, "<|endoftext|>"),),
    )
    engine.close()
    answers: dict[str, list[str | None]] = {problem.id: [] for problem in problems}
    for rollout in rollouts:
        text = decode_ids(policy.tokenizer, rollout.response_ids)
        answers[rollout.problem_id].append(extract_answer(text, require_think_closed=False))
    return answers


def main() -> None:
    with open_job("curate", parallel=True) as job:
        section = job.params.curate
        policy = load_policy(Path("models/base"), precision=job.params.engine.precision)
        seen = frozenset(row["prompt"] for _, row in json_rows(Path("data/corpus/problems.jsonl")))
        train, heldout, table = curate(
            load_sources(section.sources, seed=job.seed),
            heldout=section.heldout,
            seed=job.seed,
            pretraining=seen,
            dedup_threshold=section.dedup_threshold,
            dedup_permutations=section.dedup_permutations,
            shingle_words=section.shingle_words,
            ngram=section.ngram,
            ngram_overlap=section.ngram_overlap,
            verify=verify,
            guess=(lambda problems: guesses(job, policy, problems)) if section.guess.samples else None,
        )
        traces = trace_conversations(train, section.traces, per_problem=section.traces_per_problem, seed=job.seed)
        with job.publish(Path("data/curated")) as folder:
            write_jsonl(folder / "train.jsonl", train)
            write_jsonl(folder / "heldout.jsonl", heldout)
            write_jsonl(folder / "traces.jsonl", traces)
        job.note(f"{len(train)} problems to train on, {len(heldout)} held out, {len(traces)} traces")
        job.report({"train": len(train), "heldout": len(heldout), "traces": len(traces), "drops": table.to_json()})


if __name__ == "__main__":
    no_arguments(__doc__)
    main()
