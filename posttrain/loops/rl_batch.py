"""What one RL step learns from: samples of some prompts, verified and rewarded.

Shapes: P prompts, G samples of a group.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import END_OF_TEXT, TURN_END, render_prompt, special_id
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.errors import VerifierError
from posttrain.loops.clock import Clock
from posttrain.loops.recipe import Recipe
from posttrain.loops.rl_step import token_ids
from posttrain.loops.sample import Sample, read_sample
from posttrain.loops.scoring import score
from posttrain.losses.kl import k3
from posttrain.records import Message, Problem
from posttrain.rewards import terms
from posttrain.rewards.total import Scorer, total_rewards
from posttrain.rl.advantages import advantages
from posttrain.rl.sampling import PromptSampler

WATCHED = 2
"""Samples of each group from which the divergence from the reference is estimated when nothing else needs it."""

Prompts = list[tuple[int, Problem]]
"""Problems of a step with their indices."""


@dataclass(frozen=True, slots=True)
class Batch:
    """P groups of G samples."""

    samples: list[list[Sample]]
    advantages_PG: Tensor
    reference: dict[tuple[int, int], Tensor]
    """Log-probabilities (response tokens,) under the reference of the samples (p, g) for which they were computed."""
    metrics: dict[str, float]

    @property
    def tokens(self) -> int:
        """Response tokens."""
        return sum(sample.tokens for group in self.samples for sample in group)

    def has_signal(self, group: int) -> bool:
        """Whether any sample of the group has an advantage."""
        return bool((self.advantages_PG[group] != 0).any())


@dataclass(frozen=True, slots=True)
class Collector:
    """What stays the same from step to step while samples are collected."""

    tokenizer: PreTrainedTokenizerFast
    reference: PreTrainedModel
    problems: Sequence[Problem]
    sampler: PromptSampler
    rollouts: RolloutEngine
    recipe: Recipe
    section: config.Rl
    terms: Mapping[str, Scorer]
    """Reward terms by name."""

    def collect(self, step: int, weights: Mapping[str, float], seed: str, clock: Clock) -> Batch:
        """A step's batch. With drop_constant, rounds of sampling until all groups teach; metrics are of the first."""
        rounds: list[Batch] = []
        missing = self.section.prompts_per_step
        for number in range(1 + (self.recipe.refills if self.recipe.drop_constant else 0)):
            drawn = self.sampler.draw(self.section.prompts_per_step, step=step)
            with clock("generate"):
                samples = self._sample([self.problems[i] for i in drawn], f"{seed}:{number}", clock)
            with clock("reward"):
                batch = self._reward(samples, weights)
            for index, group in zip(drawn, samples, strict=True):
                self.sampler.update(index, solved=sum(sample.correct for sample in group), seen=len(group))
            rounds.append(keep_teaching(batch, missing) if self.recipe.drop_constant else batch)
            missing -= len(rounds[-1].samples)
            if missing == 0:
                break
        return join(rounds)

    def _sample(self, drawn: Sequence[Problem], seed: str, clock: Clock) -> list[list[Sample]]:
        section = self.section
        requests = [Request(problem.id, chat_prompt(self.tokenizer, problem)) for problem in drawn]
        sampled = self.rollouts.generate(
            requests,
            samples=section.group_size,
            generation=section.generation,
            seed=random.Random(seed).getrandbits(31),
            stop_ids=[special_id(self.tokenizer, token) for token in (TURN_END, END_OF_TEXT)],
        )
        groups = [sampled[i : i + section.group_size] for i in range(0, len(sampled), section.group_size)]
        return [
            [read_sample(self.tokenizer, problem, "think", rollout) for rollout in group]
            for problem, group in zip(drawn, groups, strict=True)
        ]

    def _reward(self, samples: list[list[Sample]], weights: Mapping[str, float]) -> Batch:
        """Weighted reward terms, minus the KL where it is part of the reward, and the advantages that follow."""
        refuse_unverified(samples, self.section.max_unverified)
        limit = self.section.generation.max_new_tokens
        rewarded = total_rewards([as_group(group, limit) for group in samples], weights, self.terms)
        rewards_PG = torch.tensor([total_G for total_G, _ in rewarded], dtype=torch.float64)
        reference, sequence_kl = self._reference(samples)
        if self.recipe.kl_in_reward:
            rewards_PG -= self.recipe.kl_in_reward * torch.tensor(sequence_kl).view(rewards_PG.shape)
        valid_PG = torch.tensor([[sample.verdict.status != "unverified" for sample in group] for group in samples])
        advantages_PG = advantages(rewards_PG, valid_PG, baseline=self.recipe.baseline, scale=self.recipe.scale)
        means = {name: mean([value for _, values in rewarded for value in values[name]]) for name in weights}
        metrics = {f"reward/{name}": value for name, value in means.items()}
        metrics |= {f"reward/{name}_weight": weight for name, weight in weights.items()}
        metrics |= {"reward/total": float(rewards_PG.mean()), **sample_metrics(samples)}
        metrics |= divergence(samples, reference)
        metrics["train/groups_with_signal"] = mean([bool(row.any()) for row in advantages_PG != 0])
        return Batch(samples, advantages_PG, reference, metrics)

    def _reference(self, samples: list[list[Sample]]) -> tuple[dict[tuple[int, int], Tensor], list[float]]:
        """Reference log-probabilities of the samples that need them, and each one's k1 summed over the response."""
        everywhere = self.recipe.kl_in_reward or self.recipe.kl_in_loss
        keys = [(p, g) for p, group in enumerate(samples) for g in range(len(group)) if everywhere or g < WATCHED]
        rollouts = [samples[p][g].rollout for p, g in keys]
        scores = score(
            self.reference,
            [token_ids(rollout) for rollout in rollouts],
            micro_batch_tokens=self.section.micro_batch_tokens,
            temperature=self.section.generation.temperature,
        )
        k1 = [float((torch.tensor(r.logprobs) - s).sum()) for r, s in zip(rollouts, scores, strict=True)]
        return dict(zip(keys, scores, strict=True)), k1


def as_group(samples: Sequence[Sample], limit: int) -> terms.Group:
    """The samples of a prompt as reward terms see them."""
    seen = tuple(terms.Sample(s.verdict, s.parts, s.rollout.response_ids, s.rollout.finish) for s in samples)
    return terms.Group(samples[0].problem, samples[0].mode, limit, seen, samples[0].rollout.prompt_ids)


def chat_prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> tuple[int, ...]:
    """The question as a chat turn that asks for thinking."""
    return tuple(render_prompt(tokenizer, [Message("user", problem.prompt)], "think"))


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


def keep_teaching(batch: Batch, limit: int) -> Batch:
    """The first `limit` groups with a signal."""
    kept = [p for p in range(len(batch.samples)) if batch.has_signal(p)][:limit]
    place = {p: number for number, p in enumerate(kept)}
    reference = {(place[p], g): scores for (p, g), scores in batch.reference.items() if p in place}
    return Batch([batch.samples[p] for p in kept], batch.advantages_PG[kept], reference, batch.metrics)


def join(rounds: Sequence[Batch]) -> Batch:
    """One batch of several rounds, with the metrics of the first, which no selection has touched."""
    reference: dict[tuple[int, int], Tensor] = {}
    start = 0
    for part in rounds:
        reference |= {(start + p, g): scores for (p, g), scores in part.reference.items()}
        start += len(part.samples)
    return Batch(
        [group for part in rounds for group in part.samples],
        torch.cat([part.advantages_PG for part in rounds]),
        reference,
        rounds[0].metrics | {"rollout/rounds": float(len(rounds))},
    )


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
