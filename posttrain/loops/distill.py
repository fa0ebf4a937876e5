"""On-policy distillation: the student writes, the teacher says at every token what it would have done.

The loss is a divergence over the whole vocabulary at each token of the student's own responses (Qwen3 report, section
4.5), in both modes of thinking; no verifier is needed. Both at temperature 1.

Shapes: M response tokens, C width, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config
from posttrain.chat.template import END_OF_TEXT, TURN_END, render_prompt, special_id, with_flag
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.packing import Packed, pack, plan
from posttrain.engine.policy import Policy, head_logits, over_vocabulary, predicting_hidden
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.engine.trainer import Trainer
from posttrain.errors import ModelError
from posttrain.loops.clock import Clock
from posttrain.loops.ending import refuse_other_end
from posttrain.loops.rl import summary
from posttrain.loops.rl_batch import mean
from posttrain.loops.rl_step import token_ids
from posttrain.losses.distill import DIVERGENCES
from posttrain.records import Message, Problem, Rollout

Divergence = Callable[[Tensor, Tensor], Tensor]


def run_distill(
    student: Policy,
    teacher: Policy,
    problems: Sequence[Problem],
    *,
    section: config.Distill,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    save_every: int,
) -> dict[str, Any]:
    """Train `student` in place; `rollouts` must sample from it. Returns the means over the first and the last steps."""
    refuse_other_vocabulary(student, teacher)
    teacher.model.requires_grad_(False).eval()
    steps = section.on_policy_steps
    optimizer = section.on_policy_optimizer
    trainer = Trainer(student.model, optimizer=optimizer, total_steps=max(1, steps), engine=engine, seed=seed)
    history: list[dict[str, float]] = []
    if found := latest_checkpoint(checkpoints):
        _, state = found
        trainer.load_state_dict(state["trainer"])
        history = state["history"]
        rollouts.load_weights(trainer.model, len(history))
    divergence = DIVERGENCES[section.kl]
    for step in range(len(history), steps):
        clock = Clock()
        with clock("generate"):
            drawn = draw(student, problems, section, seed=f"{seed}:{step}")
            sampled = write(student, rollouts, drawn, section, f"{seed}:{step}")
        with clock("update"):
            responses = [token_ids(rollout) for rollout in sampled]
            tokens = sum(len(response) for _, response in responses)
            own = responses[rank() :: world_size()]
            groups = plan([[response] for response in own], tokens=engine.micro_batch_tokens)
            parts = [pack([own[i] for i in group]).to(trainer.model.device) for group in groups]
            stats = trainer.step(parts, make_distill_loss(teacher.model, divergence, tokens=tokens))
        with clock("sync"):
            rollouts.load_weights(trainer.model, step + 1)
        history.append(
            {
                "train/loss": stats.loss,
                "train/grad_norm": stats.grad_norm,
                "train/learning_rate": stats.lr,
                "length/mean": tokens / len(sampled),
                "rollout/truncated": mean([rollout.finish == "length" for rollout in sampled]),
                **stats.metrics,
            }
        )
        log(history[-1] | clock.metrics(tokens=tokens), step + 1)
        if (step + 1) % save_every == 0 and step + 1 < steps:
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict(), "history": history})
    refuse_other_end(len(history), steps)
    return summary(history)


def refuse_other_vocabulary(student: Policy, teacher: Policy) -> None:
    """Distributions can be compared only over the same tokens."""
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ModelError("distill: student and teacher have different tokenizers, wanted: the same vocabulary")
    sizes = student.model.config.vocab_size, teacher.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"distill: got vocabularies of {sizes[0]} (student) and {sizes[1]} (teacher), wanted equal sizes"
        )


def draw(student: Policy, problems: Sequence[Problem], section: config.Distill, *, seed: str) -> list[Request]:
    """A step's prompts: different problems, a share of them asking for no thinking."""
    rng = random.Random(seed)
    requests = []
    for problem in rng.sample(list(problems), min(section.prompts_per_step, len(problems))):
        prompt = with_flag(problem.prompt, "no_think" if rng.random() < section.no_think_share else "think")
        ids = render_prompt(student.tokenizer, [Message("user", prompt)], "think")
        requests.append(Request(problem.id, tuple(ids)))
    return requests


def write(
    student: Policy, rollouts: RolloutEngine, requests: Sequence[Request], section: config.Distill, seed: str
) -> list[Rollout]:
    """One response of the student to each prompt."""
    return rollouts.generate(
        requests,
        samples=1,
        generation=section.generation,
        seed=random.Random(f"{seed}:write").getrandbits(31),
        stop_ids=[special_id(student.tokenizer, token) for token in (TURN_END, END_OF_TEXT)],
    )


def make_distill_loss(
    teacher: PreTrainedModel, divergence: Divergence, *, tokens: int
) -> Callable[[nn.Module, Packed], tuple[Tensor, dict[str, Tensor]]]:
    """Divergence per response token, as an additive part of the mean over the batch's `tokens`."""

    def loss_fn(model: nn.Module, packed: Packed) -> tuple[Tensor, dict[str, Tensor]]:
        def read(student_MC: Tensor, teacher_MC: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                teacher_MV = head_logits(teacher, teacher_MC)
            student_MV = head_logits(model, student_MC)
            return divergence(student_MV, teacher_MV), student_MV.detach().argmax(-1) == teacher_MV.argmax(-1)

        with torch.no_grad():
            teacher_MC = predicting_hidden(teacher, packed)
        divergence_M, agreed_M = over_vocabulary(model, read, predicting_hidden(model, packed), teacher_MC)
        return divergence_M.sum() / tokens, {"train/agreement": agreed_M.sum() / tokens}

    return loss_fn
