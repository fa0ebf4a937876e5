"""Process rewards on one policy: how well steps are judged, what choosing by them is worth, and searching by them.

Two process reward models are trained on the same completions, one on soft and one on hard labels. The gold answers of
the held-out problems are used to measure, never to choose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain.chat.split import extract_answer
from posttrain.config import Engine
from posttrain.curation.solvers import solvable
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import RolloutEngine
from posttrain.engine.scalar_head import load_reward_model
from posttrain.evals.intervals import bootstrap_mean, paired_difference, resample
from posttrain.evals.rerank import Candidate, accuracies, auroc, by_best, rerank
from posttrain.loops.process_reward import (
    LabelledResponse,
    StepScorer,
    checker_scorer,
    prm_scorer,
    run_process_reward,
)
from posttrain.loops.reward_scores import score_responses
from posttrain.loops.sample import Sample, sample_problems
from posttrain.loops.search import Searcher, SearchResult
from posttrain.loops.step_labels import LABELS, StepCount, count_completions
from posttrain.records import Problem
from posttrain.rewards.steps import AGGREGATIONS
from posttrain.rl.process import StepReward
from posttrain.rl.search import RULES
from studies.process.settings import Settings

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Study:
    settings: Settings
    policy: Policy
    rollouts: RolloutEngine
    engine: Engine
    note: Note
    scorers: dict[str, StepScorer] = field(default_factory=dict)
    """By name: prm_soft, prm_hard, checker."""
    models: dict[str, PreTrainedModel] = field(default_factory=dict)
    """The process reward models, by the kind of label that they were trained on."""

    def run(self, train: Sequence[Problem], heldout: Sequence[Problem]) -> dict[str, Any]:
        """The report; `scorers` and `models` are filled on the way."""
        numbers = self.settings
        samples, counts = self._labels(_first(train, numbers.labels.problems, numbers.seed))
        checker = checker_scorer(self.policy.tokenizer)
        report: dict[str, Any] = {"policy": numbers.policy, "labels": self._label_quality(samples, counts, checker)}
        for label in LABELS:
            self.models[label] = self._train(label, samples, counts)
            self.scorers[f"prm_{label}"] = prm_scorer(
                self.models[label], self.policy.tokenizer, micro_batch_tokens=self.engine.micro_batch_tokens
            )
        self.scorers["checker"] = checker
        problems = [problem for problem in heldout if solvable(problem)][: numbers.rerank.problems]
        pools = self._sample(problems, numbers.rerank.samples, numbers.seed + 1)
        self.note(f"{sum(len(pool) for pool in pools)} samples of {len(pools)} held-out problems")
        scored = {name: _per_problem(scorer, pools) for name, scorer in self.scorers.items()}
        report["steps"] = self._step_quality(scored)
        outcome = self._outcome_scores(pools)
        candidates = _candidates(pools, scored, outcome, aggregate=numbers.rerank.aggregate)
        report["rerank"] = self._rerank(candidates)
        report["aggregations"] = {
            name: self._best(_candidates(pools, scored, {}, aggregate=name)) for name in AGGREGATIONS
        }
        report["search"] = self._search(problems, pools, candidates)
        return report | {"questions": len(problems), "tokens": _mean([s.tokens for pool in pools for s in pool])}

    def _sample(self, problems: Sequence[Problem], samples: int, seed: int) -> list[list[Sample]]:
        tokenizer, generation = self.policy.tokenizer, self.settings.generation
        return sample_problems(
            self.rollouts, tokenizer, problems, mode="think", samples=samples, generation=generation, seed=seed
        )

    def _labels(self, problems: Sequence[Problem]) -> tuple[list[Sample], list[list[StepCount]]]:
        """Samples of training problems, and how completions of their steps came out."""
        numbers = self.settings
        groups = self._sample(problems, numbers.labels.samples, numbers.seed)
        samples = [sample for group in groups for sample in group]
        counts = count_completions(
            self.rollouts,
            self.policy.tokenizer,
            samples,
            completions=numbers.labels.completions,
            generation=numbers.generation,
            seed=numbers.seed + 2,
        )
        self.note(f"{sum(map(len, counts))} steps of {len(samples)} responses labelled")
        kept = [(sample, row) for sample, row in zip(samples, counts, strict=True) if row]
        return [sample for sample, _ in kept], [row for _, row in kept]

    def _label_quality(
        self, samples: Sequence[Sample], counts: Sequence[Sequence[StepCount]], checker: StepScorer
    ) -> dict[str, Any]:
        """How the labels themselves agree with the exact checker: they are values, and noisy."""
        right = [{step.end: step.reward for step in row} for row in checker(samples)]
        rows = [(s.problem.id, right[i][c.end], c) for i, s in enumerate(samples) for c in counts[i]]
        quality = {
            label: _auroc([read(c) for *_, c in rows], [ok for _, ok, _ in rows], [q for q, *_ in rows], self.settings)
            for label, read in LABELS.items()
        }
        return {"responses": len(samples), "steps": len(rows), "auroc": quality}

    def _train(self, label: str, samples: Sequence[Sample], counts: Sequence[Sequence[StepCount]]) -> PreTrainedModel:
        examples = [
            LabelledResponse(
                (sample.rollout.prompt_ids, sample.rollout.response_ids),
                tuple(count.end for count in row),
                tuple(LABELS[label](count) for count in row),
            )
            for sample, row in zip(samples, counts, strict=True)
        ]
        losses: list[float] = []
        model = run_process_reward(
            self.policy,
            examples,
            optimizer=self.settings.training.optimizer,
            epochs=self.settings.training.epochs,
            batch_responses=self.settings.training.batch_responses,
            engine=self.engine,
            seed=self.settings.seed,
            log=lambda metrics, step: losses.append(metrics["train/loss"]),
        )
        self.note(f"prm_{label}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        return model

    def _step_quality(self, scored: Mapping[str, list[list[list[StepReward]]]]) -> dict[str, Any]:
        """AUROC of each model's step scores, right and wrong steps by the exact checker."""
        first = self.settings.rerank.step_samples
        flat = {
            name: [(q, step.reward) for q, pool in enumerate(pools) for row in pool[:first] for step in row]
            for name, pools in scored.items()
        }
        right = [reward for _, reward in flat["checker"]]
        return {
            "steps": len(right),
            "right_share": _mean(right),
            "auroc": {
                name: _auroc([value for _, value in rows], right, [q for q, _ in rows], self.settings)
                for name, rows in flat.items()
                if name != "checker"
            },
        }

    def _outcome_scores(self, pools: Sequence[Sequence[Sample]]) -> dict[str, list[list[float]]]:
        """Probability scale of the Bradley-Terry model's rewards, where the settings name one."""
        if self.settings.reward_model is None:
            return {}
        model = load_reward_model(
            Path(self.settings.reward_model), self.policy.tokenizer, precision=self.engine.precision
        )
        responses = [(s.rollout.prompt_ids, s.rollout.response_ids) for pool in pools for s in pool]
        values = torch.tensor(score_responses(model, responses, micro_batch_tokens=self.engine.micro_batch_tokens))
        given = iter(values.sigmoid().tolist())
        return {"orm": [[next(given) for _ in pool] for pool in pools]}

    def _rerank(self, candidates: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
        numbers = self.settings.rerank
        names = sorted(candidates[0][0].scores)
        seed, draws = self.settings.seed, self.settings.bootstrap
        table = rerank(candidates, scores=names, at=numbers.at, draws=draws, seed=seed)
        return {
            arm: {
                str(size): {
                    "accuracy": point.accuracy.to_json(),
                    "over_majority": point.over_majority.to_json(),
                    **({} if point.score is None else {"score": point.score}),
                }
                for size, point in row.items()
            }
            for arm, row in table.items()
        }

    def _best(self, candidates: Sequence[Sequence[Candidate]]) -> dict[str, float]:
        """Accuracy of the best by each score, at the largest N."""
        size = max(self.settings.rerank.at)
        names = sorted(candidates[0][0].scores)
        return {name: float(accuracies(candidates, by_best(name), size=size).mean()) for name in names}

    def _search(
        self,
        problems: Sequence[Problem],
        pools: Sequence[Sequence[Sample]],
        candidates: Sequence[Sequence[Candidate]],
    ) -> dict[str, Any]:
        """Search against the best of N by the same score, at equal generated tokens, on the same problems."""
        numbers = self.settings.search
        found: dict[str, Any] = {}
        for name in (f"prm_{numbers.label}", "checker") if numbers.problems else ():
            searcher = Searcher(
                engine=self.rollouts,
                tokenizer=self.policy.tokenizer,
                scorer=self.scorers[name],
                values=AGGREGATIONS[self.settings.rerank.aggregate],
                rule=RULES[numbers.rule],
                exploration=numbers.exploration,
                width=numbers.width,
                generation=self.settings.generation,
                reserve=numbers.reserve,
                simulations=numbers.simulations,
            )
            found[name] = {}
            for size in numbers.at:
                some = slice(0, numbers.problems)
                budgets = [round(size * _mean([s.tokens for s in pool])) for pool in pools[some]]
                results = searcher.search(problems[some], budgets=budgets, seed=self.settings.seed + 3)
                best_Q = accuracies(candidates[some], by_best(name), size=size)
                found[name][str(size)] = self._compare(results, budgets, best_Q)
                self.note(f"search by {name} at the tokens of {size} samples done")
        return found

    def _compare(self, results: Sequence[SearchResult], budgets: Sequence[int], best_Q: np.ndarray) -> dict[str, Any]:
        counts_RQ = resample(len(results), draws=self.settings.bootstrap, seed=self.settings.seed)
        right_Q = np.array([float(result.sample.correct) for result in results])
        return {
            "accuracy": bootstrap_mean(right_Q, counts_RQ).to_json(),
            "best_of_n": bootstrap_mean(best_Q, counts_RQ).to_json(),
            "over_best_of_n": paired_difference(right_Q, best_Q, counts_RQ).to_json(),
            "tokens": _mean([result.tokens for result in results]),
            "tokens_best_of_n": _mean(budgets),
            "tokens_scored": _mean([result.tokens_scored for result in results]),
            "nodes": _mean([result.nodes for result in results]),
        }


def _first(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """`count` problems that the world can solve, drawn by seed."""
    known = [problem for problem in problems if solvable(problem)]
    return random.Random(seed).sample(known, min(count, len(known)))


def _per_problem(scorer: StepScorer, pools: Sequence[Sequence[Sample]]) -> list[list[list[StepReward]]]:
    """Scores in one call, as batches of like lengths want it, and back in pools."""
    scored = iter(scorer([sample for pool in pools for sample in pool]))
    return [[next(scored) for _ in pool] for pool in pools]


def _candidates(
    pools: Sequence[Sequence[Sample]],
    scored: Mapping[str, list[list[list[StepReward]]]],
    outcome: Mapping[str, list[list[float]]],
    *,
    aggregate: str,
) -> list[list[Candidate]]:
    """The samples as what is chosen from: their scores are those of their steps, aggregated, and of `outcome`."""
    join = AGGREGATIONS[aggregate]
    return [
        [
            Candidate(
                extract_answer(sample.text, require_think_closed=True),
                sample.correct,
                {name: join([step.reward for step in rows[q][k]]) for name, rows in scored.items()}
                | {name: rows[q][k] for name, rows in outcome.items()},
            )
            for k, sample in enumerate(pool)
        ]
        for q, pool in enumerate(pools)
    ]


def _auroc(values: Sequence[float], right: Sequence[float], questions: Sequence[Any], settings: Settings) -> Any:
    found = auroc(values, np.asarray(right) > 0, questions, draws=settings.bootstrap, seed=settings.seed)
    return None if found is None else found.to_json()


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values)
