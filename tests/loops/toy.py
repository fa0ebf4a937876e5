"""A toy world for tests of loops: a micro model that answers every question with 7 or with 8, equally often."""

import copy
import functools
from pathlib import Path

import torch
import yaml

from posttrain import config, config_rl
from posttrain.chat.template import encode_example
from posttrain.engine.policy import Policy, build_micro
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.records import Conversation, Message, Problem
from tests.chat.tokenizer import build_tokenizer
from tests.plain import pad, sequence_logprobs

MICRO = config.MicroModel(
    hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=1, head_dim=16, max_position_embeddings=128
)
ENGINE = config.Engine(
    precision="fp32",
    zero_stage=0,
    micro_batch_tokens=4096,
    rollout="transformers",
    rollout_batch=256,
    canary_tolerance=1e-3,
)
GENERATION = config.Generation(temperature=1.0, max_new_tokens=24)
QUESTIONS = ("What is 3 + 4?", "What is 4 + 3?", "3 + 4?", "4 + 3?")
PROBLEMS = [
    Problem(f"p{i}", prompt, "7", "exact", "toy", "toy", pass_rate=rate)
    for i, (prompt, rate) in enumerate(zip(QUESTIONS, (0.2, 0.4, 0.6, 0.8), strict=True))
]


def optimizer(lr: float = 0.01) -> config.Optimizer:
    return config.Optimizer(
        kind="adamw",
        lr=lr,
        schedule="constant",
        warmup=0.0,
        final_lr_ratio=1.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        grad_clip=1.0,
    )


@functools.cache
def _start(seed: int) -> Policy:
    tokenizer = build_tokenizer()
    model = build_micro(MICRO, vocab_size=len(tokenizer), eos_id=2, pad_id=0, seed=seed)
    examples = [
        encode_example(
            tokenizer,
            Conversation(
                "c", "p", (Message("user", q), Message("assistant", f"\\boxed{{{a}}}", thinking="so")), "think"
            ),
        )
        for q in QUESTIONS
        for a in (7, 8)
    ]
    ids, _ = pad([ids for ids, _ in examples])
    mask, _ = pad([mask for _, mask in examples])
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        loss = -sequence_logprobs(model, ids, mask, temperature=1.0).sum() / mask.sum()
        adamw.zero_grad()
        loss.backward()
        adamw.step()
    model.requires_grad_(True).zero_grad()
    return Policy(model, tokenizer)


def start_policy(seed: int = 0) -> Policy:
    """A fresh copy of the fine-tuned toy policy."""
    start = _start(seed)
    return Policy(copy.deepcopy(start.model), start.tokenizer)


def sampler_of(policy: Policy) -> TransformersEngine:
    return TransformersEngine(policy, batch=ENGINE.rollout_batch, tolerance=ENGINE.canary_tolerance)


def objective(name: str = "dr_grpo") -> dict:
    return yaml.safe_load((Path("objectives") / f"{name}.yaml").read_text(encoding="utf-8"))["grpo"]


def objective_of(name: str = "dr_grpo", **changes) -> config_rl.Objective:
    return config_rl.Objective.model_validate(objective(name)["objective"] | changes, strict=False)


def rl_section(name: str = "dr_grpo", **changes) -> config.Rl:
    overlay = objective(name)
    rewards = {"accuracy": {"weight": 1.0, "start": 0, "ramp": 0}} | overlay.pop("rewards", {})
    base = {
        "method": "rl",
        "rft": {"max_per_problem": 2, "epochs": 1.0, "batch_tokens": 256, "sequence_length": 64},
        "rewards": rewards,
        "sampling": "uniform",
        "curriculum_steps": 2,
        "prompts_per_step": 4,
        "group_size": 8,
        "steps": 6,
        "epochs": 1,
        "minibatches": 1,
        "generation": GENERATION.model_dump(),
        "optimizer": optimizer(0.003).model_dump(),
        "asynchrony": "sync",
        "mismatch_budget": 0.01,
        "max_unverified": 0.0,
        "save_every": 2,
        "eval_every": 2,
        "eval_samples": 2,
        "keep": "last",
    }
    return config.Rl.model_validate(base | overlay | changes, strict=False)


class Journal:
    """Collects what a loop logs; interrupts it after `stop_after` calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self._stop_after = stop_after

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))
        if len(self.rows) == self._stop_after:
            raise KeyboardInterrupt


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
