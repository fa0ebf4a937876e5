"""What one RL step learns from: samples of some prompts, verified and rewarded.

Shapes: P prompts, G samples of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.config_asynchrony import FRESH, trains_fresh
from posttrain.engine.distributed import share_out
from posttrain.errors import VerifierError
from posttrain.loops.clock import Clock
from posttrain.loops.credit import Credit, Rewarded, assign_credit
from posttrain.loops.partial import fresh_tokens
from posttrain.loops.process_reward import StepScorer
from posttrain.loops.recipe import Recipe
from posttrain.loops.rl_state import Learner
from posttrain.loops.rl_step import mean, token_ids
from posttrain.loops.rl_stream import Group, Stream
from posttrain.loops.rl_value import predict_values
from posttrain.loops.sample import Sample, read_samples
from posttrain.loops.scoring import shared_score
from posttrain.losses.kl import k3
from posttrain.records import Problem
from posttrain.rewards import terms
from posttrain.rewards.total import Scorer, total_rewards
from posttrain.rl.gae import explained_variance
from posttrain.rl.sampling import PromptSampler

WATCHED = 16
"""Samples of a step, each of another group, from which the divergence from the reference is estimated when nothing else
needs it: a forward pass for a curve to look at."""
ONE_OF = 16
"""Samples of a small step of which no more than one is watched."""

Prompts = list[tuple[int, Problem]]
"""Problems of a step with their indices."""


@dataclass(frozen=True, slots=True)
class Batch:
    """P groups of G samples."""

    samples: list[list[Sample]]
    credits: list[list[Credit]]
    trained: list[list[bool]]
    """False for responses left out of the loss and its denominators."""
    reference: dict[tuple[int, int], Tensor]
    """Log-probabilities (response tokens,) under the reference of the samples (p, g) for which they were computed."""
    metrics: dict[str, float]
    fresh: Mapping[tuple[int, int], Sequence[bool]] = field(default_factory=dict)
    """Which tokens the loss sees, of responses with tokens that are too old for it."""

    @property
    def tokens(self) -> int:
        """Response tokens."""
        return sum(sample.tokens for group in self.samples for sample in group)

    def seen(self, prompt: int, sample: int) -> int:
        """Tokens of a response that are in the loss and its denominators."""
        if not self.trained[prompt][sample]:
            return 0
        fresh = self.fresh.get((prompt, sample))
        return self.samples[prompt][sample].tokens if fresh is None else sum(fresh)

    def has_signal(self, group: int) -> bool:
        """Whether any token of the group has an advantage."""
        return any(bool((credit.advantages_T != 0).any()) for credit in self.credits[group])


@dataclass(frozen=True, slots=True)
class Collector:
    """What stays the same from step to step while samples are collected."""

    tokenizer: PreTrainedTokenizerFast
    learner: Learner
    score_steps: StepScorer | None
    problems: Sequence[Problem]
    sampler: PromptSampler
    stream: Stream
    section: config.Rl
    terms: Mapping[str, Scorer]
    """Reward terms by name."""

    def collect(self, step: int, weights: Mapping[str, float], clock: Clock) -> Batch:
        """A step's batch. With drop_constant, rounds of sampling until all groups teach; metrics are of the first."""
        recipe = self.learner.recipe
        rounds: list[Batch] = []
        missing = self.section.prompts_per_step
        for number in range(1 + (recipe.refills if recipe.drop_constant else 0)):
            groups = self.stream.groups(step, number, clock)
            with clock("reward"):
                samples = self._read(groups)
                batch = self._reward(samples, recipe, weights)
            for asked, group in zip(groups, samples, strict=True):
                self.sampler.update(asked.index, solved=sum(sample.correct for sample in group), seen=len(group))
            rounds.append(keep_teaching(batch, missing) if recipe.drop_constant else batch)
            missing -= len(rounds[-1].samples)
            if missing == 0:
                break
        batch = join(rounds)
        batch.metrics.update(self.stream.metrics)
        return self._without_old_tokens(batch, step)

    def _read(self, groups: Sequence[Group]) -> list[list[Sample]]:
        """The responses, verified."""
        size = self.section.group_size
        asked = [(self.problems[group.index], rollout) for group in groups for rollout in group.rollouts]
        flat = read_samples(self.tokenizer, [(problem, "think", rollout) for problem, rollout in asked])
        return [flat[start : start + size] for start in range(0, len(flat), size)]

    def _without_old_tokens(self, batch: Batch, step: int) -> Batch:
        """With `train: fresh`, the tokens that the loss is to see."""
        if not trains_fresh(self.section.asynchrony):
            return batch
        masks = {
            (p, g): fresh_tokens(sample.rollout, version=step, max_stale=FRESH)
            for p, group in enumerate(batch.samples)
            for g, sample in enumerate(group)
        }
        return replace(batch, fresh={place: seen for place, seen in masks.items() if not all(seen)})

    def _reward(self, samples: list[list[Sample]], recipe: Recipe, weights: Mapping[str, float]) -> Batch:
        """Weighted reward terms, minus the KL where it is part of the reward, and the advantages that follow."""
        refuse_unverified(samples, self.section.max_unverified)
        limit = self.section.generation.max_new_tokens
        groups = [as_group(group, limit) for group in samples]
        rewarded = share_out(groups, lambda own: total_rewards(own, weights, self.terms))
        unfinished_PG = torch.tensor([[sample.rollout.finish != "stop" for sample in group] for group in samples])
        scores_PG = torch.tensor([total_G for total_G, _ in rewarded], dtype=torch.float64)
        scores_PG = recipe.truncation(scores_PG, unfinished_PG, amount=recipe.truncation_amount)
        reference, k1 = self._reference(samples, recipe)
        known = self._known(samples, scores_PG, unfinished_PG, k1, recipe)
        credits = assign_credit(known, recipe)
        means = {name: mean([value for _, values in rewarded for value in values[name]]) for name in weights}
        metrics = {f"reward/{name}": value for name, value in means.items()}
        metrics |= {f"reward/{name}_weight": weight for name, weight in weights.items()}
        metrics |= {"reward/total": float(known.rewards_PG.mean()), **sample_metrics(samples)}
        metrics |= divergence(samples, reference) | value_metrics(credits)
        batch = Batch(samples, credits, known.trained_PG.tolist(), reference, metrics)
        metrics["train/groups_with_signal"] = mean([batch.has_signal(p) for p in range(len(samples))])
        return batch

    def _known(
        self,
        samples: list[list[Sample]],
        scores_PG: Tensor,
        unfinished_PG: Tensor,
        k1: list[list[Tensor]],
        recipe: Recipe,
    ) -> Rewarded:
        """All that credit is given by."""
        rewards_PG = scores_PG
        if recipe.kl_in_reward:
            sequence_k1 = [float(k1_T.sum()) for k1_G in k1 for k1_T in k1_G]
            rewards_PG = scores_PG - recipe.kl_in_reward * torch.tensor(sequence_k1).view(scores_PG.shape)
        return Rewarded(
            scores_PG=scores_PG,
            rewards_PG=rewards_PG,
            valid_PG=torch.tensor([[sample.verdict.status != "unverified" for sample in group] for group in samples]),
            trained_PG=~unfinished_PG if recipe.mask_truncated else torch.ones_like(unfinished_PG),
            lengths=[[sample.tokens for sample in group] for group in samples],
            k1=k1 if recipe.kl_in_reward else [],
            steps=[self.score_steps(group) for group in samples] if self.score_steps else [],
            values=self._values(samples),
        )

    def _reference(
        self, samples: list[list[Sample]], recipe: Recipe
    ) -> tuple[dict[tuple[int, int], Tensor], list[list[Tensor]]]:
        """Reference log-probabilities of the samples that need them, and the k1 of their tokens by group."""
        everywhere = [(p, g) for p, group in enumerate(samples) for g in range(len(group))]
        needed = recipe.kl_in_reward or recipe.kl_in_loss
        keys = everywhere if needed else watched(len(samples), self.section.group_size)
        rollouts = [samples[p][g].rollout for p, g in keys]
        with self.learner.reference.reading() as reference:
            scores = shared_score(
                reference,
                [token_ids(rollout) for rollout in rollouts],
                micro_batch_tokens=self.learner.micro_batch_tokens,
                temperature=self.section.generation.temperature,
            )
        k1: list[list[Tensor]] = [[] for _ in samples]
        for (p, _), rollout, score_T in zip(keys, rollouts, scores, strict=True):
            k1[p].append(torch.tensor(rollout.logprobs) - score_T)
        return dict(zip(keys, scores, strict=True)), k1

    def _values(self, samples: list[list[Sample]]) -> list[list[Tensor]]:
        """What the value network predicts at every token; nothing without one."""
        if self.learner.critic is None:
            return []
        responses = [token_ids(sample.rollout) for group in samples for sample in group]
        predict = partial(predict_values, self.learner.critic.model, micro_batch_tokens=self.learner.micro_batch_tokens)
        values = iter(share_out(responses, predict))
        return [[next(values) for _ in group] for group in samples]


def watched(groups: int, size: int) -> list[tuple[int, int]]:
    """(p, g) of the samples to watch: the first of every so many groups of this size."""
    count = max(1, min(WATCHED, groups * size // ONE_OF))
    return [(p, 0) for p in range(0, groups, math.ceil(groups / count))]


def as_group(samples: Sequence[Sample], limit: int) -> terms.Group:
    """The samples of a prompt as reward terms see them."""
    seen = tuple(terms.Sample(s.verdict, s.parts, s.rollout.response_ids, s.rollout.finish) for s in samples)
    return terms.Group(samples[0].problem, samples[0].mode, limit, seen, samples[0].rollout.prompt_ids)


def refuse_unverified(samples: Sequence[Sequence[Sample]], limit: float) -> None:
    """Stop when too many samples could not be verified: their rewards say nothing about the policy."""
    unverified = [s.problem.id for group in samples for s in group if s.verdict.status == "unverified"]
    share = len(unverified) / sum(len(group) for group in samples)
    if share > limit:
        raise VerifierError(
            f"{share:.1%} of the samples could not be verified, wanted at most {limit:.1%} (max_unverified); "
            f"first of them: problem {unverified[0]}"
        )


def sample_metrics(samples: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Lengths, and what the samples look like."""
    flat = [sample for group in samples for sample in group]
    metrics = {
        "length/mean": mean([s.tokens for s in flat]),
        "rollout/truncated": mean([s.rollout.finish == "length" for s in flat]),
        "rollout/unverified": mean([s.verdict.status == "unverified" for s in flat]),
        "rollout/language_mixing": mean([s.mixed for s in flat]),
    }
    for name, right in (("length/correct", True), ("length/wrong", False)):
        if lengths := [s.tokens for s in flat if s.correct is right]:
            metrics[name] = mean(lengths)
    return metrics


def divergence(samples: Sequence[Sequence[Sample]], reference: Mapping[tuple[int, int], Tensor]) -> dict[str, float]:
    """KL(policy || reference) in nats: k1 summed over a response, k3 per token; the policy's side is the sampler's."""
    k1_sequences, k3_tokens = [], []
    for (p, g), reference_T in reference.items():
        sampled_T = torch.tensor(samples[p][g].rollout.logprobs)
        k1_sequences.append(float((sampled_T - reference_T).sum()))
        k3_tokens += k3(sampled_T, reference_T, sampled_T).tolist()
    return {"kl/k1_sequence": mean(k1_sequences), "kl/k3_token": mean(k3_tokens)}


def value_metrics(credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    """How well the value network foresaw the returns; nothing without one."""
    flat = [credit for group in credits for credit in group]
    values = [credit.values_T for credit in flat if credit.values_T is not None]
    returns = [credit.returns_T for credit in flat if credit.returns_T is not None]
    if not values:
        return {}
    values_N, returns_N = torch.cat(values), torch.cat(returns)
    return {
        "train/explained_variance": explained_variance(values_N, returns_N),
        "train/value_mean": float(values_N.mean()),
    }


def keep_teaching(batch: Batch, limit: int) -> Batch:
    """The first `limit` groups with a signal."""
    kept = [p for p in range(len(batch.samples)) if batch.has_signal(p)][:limit]
    place = {p: number for number, p in enumerate(kept)}
    reference = {(place[p], g): scores for (p, g), scores in batch.reference.items() if p in place}
    return Batch(
        [batch.samples[p] for p in kept],
        [batch.credits[p] for p in kept],
        [batch.trained[p] for p in kept],
        reference,
        batch.metrics,
    )


def join(rounds: Sequence[Batch]) -> Batch:
    """One batch of several rounds, with the metrics of the first, which no selection has touched."""
    reference: dict[tuple[int, int], Tensor] = {}
    start = 0
    for part in rounds:
        reference |= {(start + p, g): scores for (p, g), scores in part.reference.items()}
        start += len(part.samples)
    return Batch(
        [group for part in rounds for group in part.samples],
        [group for part in rounds for group in part.credits],
        [group for part in rounds for group in part.trained],
        reference,
        rounds[0].metrics | {"rollout/rounds": float(len(rounds))},
    )
