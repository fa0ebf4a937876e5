"""Pre-training the default world's base models: the corpus as packed text, every token trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import SPECIAL_TOKENS, special_id
from posttrain.engine.policy import Policy, build_micro
from posttrain.loops.sft import run_sft


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    model: config.MicroModel,
    steps: int,
    section: config.ScratchBase,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
) -> tuple[Policy, dict[str, float]]:
    """A model trained from random weights for `steps` optimizer steps of `batch_tokens` tokens each."""
    end = tokenizer.pad_token_id
    examples = [[*ids, end] for ids in tokenizer(list(texts))["input_ids"]]
    random.Random(seed).shuffle(examples)
    network = build_micro(model, vocab_size=len(tokenizer), eos_id=tokenizer.eos_token_id, pad_id=end, seed=seed)
    policy = Policy(network, tokenizer)
    tokens = sum(len(ids) for ids in examples)
    summary = run_sft(
        policy,
        [(ids, [1] * len(ids)) for ids in examples],
        optimizer=section.optimizer,
        epochs=steps * section.batch_tokens / tokens,
        batch_tokens=section.batch_tokens,
        sequence_length=section.sequence_length,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
        save_every=100,
    )
    refresh_reserved(policy, seed=seed)
    return policy, summary


def refresh_reserved(policy: Policy, *, seed: int) -> None:
    """New embedding rows, distributed like the trained ones, for the chat tokens, which no document contains.

    Training only ever pushed them away, all in the same direction, so that a tuned model would take one for another.
    """
    ids = [special_id(policy.tokenizer, token) for token in SPECIAL_TOKENS if token != policy.tokenizer.pad_token]
    rows_VC = policy.model.get_input_embeddings().weight.data
    trained = [i for i in range(rows_VC.shape[0]) if i not in ids]
    mean_C, std_C = rows_VC[trained].mean(0), rows_VC[trained].std(0)
    noise = torch.randn(len(ids), rows_VC.shape[1], generator=torch.Generator().manual_seed(seed))
    rows_VC[ids] = mean_C + noise * std_C
