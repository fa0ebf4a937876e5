"""Every case by TRL, through its own trainers, in the fastest settings known for it (SETTINGS, and what is tried).

What is replaced is set-up and input alone: texts are tokenised by nobody, since both sides are given the same ids.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    pack_dataset,
)

from benchmarks.settings import Case
from benchmarks.turns import NOTHING, Turns
from benchmarks.world import Work, even_share
from posttrain.engine.scalar_head import with_scalar_head

SETTINGS: Mapping[str, Any] = {
    "gradient_checkpointing": False,  # TRL's default recomputes every forward pass
    "optim": "adamw_torch_fused",
    "logging_steps": 1,  # where a step is timed; costs about a millisecond
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "lr_scheduler_type": "constant",
}
"""Of every trainer. Besides: `sdpa` attention; no dropout; no KL and so no reference model in GRPO."""

WEIGHTS = {"fp32": torch.float32, "mixed": torch.float32, "bf16": torch.bfloat16}
"""bf16: weights and optimizer too, without fp32 master weights. It loses small updates; it is the fastest."""


def sft(work: Work, turns: Turns) -> None:
    """Packed by TRL's best-fit decreasing, and flattened to one row per forward pass, as it does by itself."""
    rows = [
        {
            "input_ids": [*group.prompt_ids, *response],
            "labels": [-100] * len(group.prompt_ids) + list(response),
        }
        for group in work.groups
        for response in group.responses
    ]
    dataset = Dataset.from_list(rows)
    packed = len(pack_dataset(dataset, work.sequence_length, "bfd"))
    options = {"packing": True, "packing_strategy": "bfd", "max_length": work.sequence_length}
    settings = SFTConfig(**_settings(work, rows=packed), **options)
    model, tokenizer = _load(work)
    _train(SFTTrainer(model, settings, train_dataset=dataset, processing_class=tokenizer), turns)


class Pairs(DPOTrainer):
    """With pairs that are ids already."""

    def _prepare_dataset(self, dataset: Dataset, *unused: Any) -> Dataset:
        return dataset


def dpo(work: Work, turns: Turns) -> None:
    _dpo(work, turns, precomputed=False)


def dpo_cached(work: Work, turns: Turns) -> None:
    _dpo(work, turns, precomputed=True)


def _dpo(work: Work, turns: Turns, *, precomputed: bool) -> None:
    rows = [
        {"prompt_ids": group.prompt_ids, "chosen_ids": group.responses[0], "rejected_ids": group.responses[1]}
        for group in work.groups
    ]
    settings = DPOConfig(
        **_settings(work, rows=len(rows)),
        beta=work.preference.beta,
        max_length=None,
        precompute_ref_log_probs=precomputed,
    )
    model, tokenizer = _load(work)
    reference = None if precomputed else _load(work)[0]
    dataset = Dataset.from_list(rows)
    _train(Pairs(model, reference, settings, train_dataset=dataset, processing_class=tokenizer), turns)


def reward_model(work: Work, turns: Turns) -> None:
    """From the same head as ours."""
    rows = [
        {
            "chosen_ids": [*group.prompt_ids, *group.responses[0]],
            "rejected_ids": [*group.prompt_ids, *group.responses[1]],
        }
        for group in work.groups
    ]
    settings = RewardConfig(
        **_settings(work, rows=len(rows)),
        max_length=None,
        center_rewards_coefficient=work.params.reward_model.centering,
    )
    policy, tokenizer = _load(work)
    model = with_scalar_head(policy, seed=work.seed)
    del policy
    dataset = Dataset.from_list(rows)
    _train(RewardTrainer(model, settings, train_dataset=dataset, processing_class=tokenizer), turns)


class Prompts(GRPOTrainer):
    """Prompts are numbers of groups; responses never end early; generation is timed."""

    work: Work
    generation_seconds = 0.0

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.work.groups[int(p)].prompt_ids) for p in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        generated = super()._generate_single_turn(*args, **options)
        self.generation_seconds = time.perf_counter() - started
        return generated


class Injecting(Prompts):
    """Given responses, whose advantages are computed at the first step and kept: what is timed is the update."""

    scored: dict[str, Any] | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self.scored is None:
            self.scored = super()._generate_and_score_completions(inputs)
        return dict(self.scored)


def grpo_update(work: Work, turns: Turns) -> None:
    def given(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Every prompt comes as often as it has responses, one after the other."""
        groups = [work.groups[int(p)] for p in prompts]
        return {
            "prompt_ids": [list(group.prompt_ids) for group in groups],
            "completion_ids": [list(group.responses[i % work.size.group]) for i, group in enumerate(groups)],
            "logprobs": None,
        }

    _train(_grpo(work, Injecting, rollout_func=given), turns)


def generate(work: Work, turns: Turns) -> None:
    trainer = _grpo(work, Prompts)
    prompts = [list(group.prompt_ids) for group in work.groups]
    repeated = [ids for ids in prompts for _ in range(work.size.group)]
    sampling = trainer.generation_config, trainer.generation_kwargs
    turns.begin()
    trainer.generation_config = type(sampling[0])(**(sampling[0].to_dict() | {"do_sample": False}))
    trainer.generation_kwargs = sampling[1] | {"do_sample": False}
    best, _ = trainer._generate_single_turn(prompts, None, {}, 1)
    trainer.generation_config, trainer.generation_kwargs = sampling
    turns.done([token for ids in best for token in ids])
    for _ in range(work.steps):
        trainer._generate_single_turn(repeated, None, {}, work.size.group)
        turns.done([])


def grpo(work: Work, turns: Turns) -> None:
    trainer = _grpo(work, Prompts)
    _train(trainer, turns, parts=lambda: {"generate": trainer.generation_seconds})


RUNS: Mapping[Case, Callable[[Work, Turns], None]] = {
    "sft": sft,
    "dpo": dpo,
    "dpo_cached": dpo_cached,
    "reward_model": reward_model,
    "grpo_update": grpo_update,
    "generate": generate,
    "grpo": grpo,
}


def _grpo(work: Work, kind: type[Prompts], **options: Any) -> Prompts:
    model, tokenizer = _load(work)
    # Generation ends where this id is drawn: nowhere.
    beyond = model.config.vocab_size
    rows = work.size.prompts * work.size.group
    settings = GRPOConfig(
        **_settings(work, rows=rows),
        num_generations=work.size.group,
        generation_batch_size=rows,
        max_completion_length=work.size.response_tokens,
        generation_kwargs={"eos_token_id": beyond},
        temperature=1.0,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        shuffle_dataset=False,
    )

    def even_shares(completion_ids: list[list[int]], **unused: Any) -> list[float]:
        return [even_share(ids) for ids in completion_ids]

    dataset = Dataset.from_list([{"prompt": str(p)} for p in range(work.size.prompts)])
    trainer = kind(model, even_shares, settings, train_dataset=dataset, processing_class=tokenizer, **options)
    trainer.work, trainer.eos_token_ids = work, [beyond]
    return trainer


def _load(work: Work) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=WEIGHTS[work.precision], attn_implementation="sdpa")
    return model, PreTrainedTokenizerFast.from_pretrained(work.folder)


def _settings(work: Work, *, rows: int) -> dict[str, Any]:
    """Arguments of every trainer; one optimizer step takes all `rows`."""
    optimizer = work.optimizer
    return {
        **SETTINGS,
        "output_dir": str(work.scratch),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": work.precision == "mixed",
        "per_device_train_batch_size": work.peer_batch,
        "gradient_accumulation_steps": math.ceil(rows / work.peer_batch),
        "max_steps": work.steps,
        "seed": work.seed,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "max_grad_norm": optimizer.grad_clip,
    }


class Reporter(TrainerCallback):
    """Ends a turn where the trainer logs the step."""

    def __init__(self, turns: Turns, parts: Callable[[], Mapping[str, float]]) -> None:
        self._turns, self._parts = turns, parts

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **unused: Any) -> None:
        self._turns.done([logs["loss"], logs["grad_norm"]], self._parts())


def _train(trainer: Trainer, turns: Turns, *, parts: Callable[[], Mapping[str, float]] = lambda: NOTHING) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reporter(turns, parts))
    turns.begin()
    trainer.train()
