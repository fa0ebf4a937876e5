"""A process reward model: the policy's body with a scalar head that is read at the end of every step.

Trained with binary cross-entropy at those tokens alone, it says for each step how likely the response is to end right
from there (labels: posttrain.loops.step_labels). Its architecture is that of the Bradley-Terry model, a classifier with
one label, read at other tokens. Beside it stands the default world's exact checker, the ceiling of any such model.
Left out: checkpoints; training takes less time than its labels.

Sources: Lightman et al., arXiv 2305.20050; Wang et al., arXiv 2312.08935, eq. 1.
Shape: N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import config
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import Policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.engine.trainer import Trainer
from posttrain.loops.clock import Clock
from posttrain.loops.reward_scores import head_at
from posttrain.loops.sample import Sample
from posttrain.loops.scoring import epoch_batches, response_length
from posttrain.rewards.steps import checked_steps, split_steps
from posttrain.rl.process import StepReward

StepScorer = Callable[[Sequence[Sample]], list[list[StepReward]]]
"""Rewards of every step of every sample, in order: at least one step for each."""


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    response: Response
    ends: tuple[int, ...]
    """Indices among the response tokens of the steps' last ones."""
    labels: tuple[float, ...]
    """One per step, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    responses: Packed
    """Whose wanted tokens are the last ones of the steps."""
    labels_N: Tensor


def run_process_reward(
    policy: Policy,
    examples: Sequence[LabelledResponse],
    *,
    optimizer: config.Optimizer,
    epochs: float,
    batch_responses: int,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
) -> PreTrainedModel:
    """The process reward model that starts from the policy's body and is trained on `examples`."""
    model = with_scalar_head(policy.model, seed=seed)
    batches = epoch_batches(len(examples), size=batch_responses, epochs=epochs, seed=seed)
    trainer = Trainer(model, optimizer=optimizer, total_steps=len(batches), engine=engine, seed=seed)
    for step, indices in enumerate(batches, start=1):
        clock = Clock()
        chosen = [examples[i] for i in indices]
        parts = make_step_batches(chosen[rank() :: world_size()], tokens=engine.micro_batch_tokens, device=model.device)
        stats = trainer.step(parts, make_step_loss(sum(len(example.ends) for example in chosen)))
        measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
        tokens = sum(response_length(example.response) for example in chosen)
        log(measured | stats.metrics | clock.metrics(tokens=tokens), step)
    return model


def make_step_batches(examples: Sequence[LabelledResponse], *, tokens: int, device: torch.device) -> list[StepBatch]:
    """Micro-batches, each of at most `tokens` tokens."""
    groups = plan([[example.response] for example in examples], tokens=tokens)
    return [_step_batch([examples[i] for i in group], device) for group in groups]


def _step_batch(examples: Sequence[LabelledResponse], device: torch.device) -> StepBatch:
    """`ends` must ascend."""
    ends = [[t in example.ends for t in range(len(example.response[1]))] for example in examples]
    labels_N = torch.tensor([label for example in examples for label in example.labels], dtype=torch.float32)
    packed = pack([example.response for example in examples], wanted=ends)
    return StepBatch(packed.to(device), labels_N.to(device))


def step_logits(model: nn.Module, batch: StepBatch) -> Tensor:
    """Log-odds (N,) in fp32 that a response is right, as seen from the end of each step."""
    return head_at(model, batch.responses, batch.responses.wanted_M)


def make_step_loss(count: int) -> Callable[[nn.Module, StepBatch], tuple[Tensor, dict[str, Tensor]]]:
    """Loss and metrics of a micro-batch, as additive parts of those of a batch with `count` labelled steps."""

    def loss_fn(model: nn.Module, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits_N = step_logits(model, batch)
        loss_N = nn.functional.binary_cross_entropy_with_logits(logits_N, batch.labels_N, reduction="none")
        return loss_N.sum() / count, {
            "reward/step": logits_N.sigmoid().sum() / count,
            "reward/step_label": batch.labels_N.sum() / count,
        }

    return loss_fn


def step_probabilities(
    model: PreTrainedModel, examples: Sequence[LabelledResponse], *, micro_batch_tokens: int
) -> list[list[float]]:
    """The model's probability at every step, in the order of `examples`; labels are not looked at."""
    values: list[list[float]] = [[] for _ in examples]
    for group in plan([[example.response] for example in examples], tokens=micro_batch_tokens):
        chosen = [examples[i] for i in group]
        with torch.no_grad():
            found = step_logits(model, _step_batch(chosen, model.device)).sigmoid().tolist()
        start = 0
        for index, example in zip(group, chosen, strict=True):
            values[index] = found[start : start + len(example.ends)]
            start += len(example.ends)
    return values


def checker_scorer(tokenizer: PreTrainedTokenizerFast) -> StepScorer:
    """1 for right steps and 0 for wrong ones, by the default world's exact checker."""
    return lambda samples: [checked_steps(tokenizer, s.problem, s.rollout.response_ids) for s in samples]


def prm_scorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, micro_batch_tokens: int) -> StepScorer:
    """The model's probability, seen from each step, that the response ends right."""

    def score(samples: Sequence[Sample]) -> list[list[StepReward]]:
        examples = [unlabelled(tokenizer, sample) for sample in samples]
        values = step_probabilities(model, examples, micro_batch_tokens=micro_batch_tokens)
        return [
            [StepReward(end, value) for end, value in zip(example.ends, row, strict=True)]
            for example, row in zip(examples, values, strict=True)
        ]

    return score


def unlabelled(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> LabelledResponse:
    """A sample with its steps and labels of 0."""
    rollout = sample.rollout
    ends = tuple(step.end for step in split_steps(tokenizer, rollout.response_ids))
    return LabelledResponse((rollout.prompt_ids, rollout.response_ids), ends, (0.0,) * len(ends))
