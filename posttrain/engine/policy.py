"""Policies: loading, saving and building causal language models, and the log-probabilities that training uses.

A policy folder is a plain Hugging Face folder (config.json, model.safetensors, tokenizer.json), so that any other tool
reads it. Equal weights give equal bytes: no date, no absolute path. Log-probabilities come from the hidden states of
the wanted positions only, because at small widths the LM head over all positions costs more than the rest.

Shapes: M wanted tokens, C width, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.config import MicroModel
from posttrain.engine.attention import packed_hidden
from posttrain.engine.distributed import own_device, rank
from posttrain.engine.lm_head import project, read_in_parts, reads_in_parts
from posttrain.engine.packing import Packed
from posttrain.errors import ModelError

# Stages show their own progress.
transformers.utils.logging.disable_progress_bar()

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

_LOGIT_ELEMENTS = 2**23
"""Logits held at once (32 MiB in fp32)."""

_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config fields of architectures that alter logits after the LM head, which `head_logits` does not do."""

_LOADING_FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")

_ORIGIN_FIELDS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""What loaded objects remember of where they came from: with it, the same weights would differ by machine."""


@dataclass(frozen=True, slots=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_policy(folder: Path, *, precision: Precision, trust_remote_code: bool = False) -> Policy:
    """Model (in evaluation mode, on this process's device) and tokenizer of a folder.

    Raises ModelError naming what is missing.
    """
    for name, pattern in (
        ("config.json", "config.json"),
        ("weights", "*.safetensors"),
        ("tokenizer", "tokenizer*.json"),
    ):
        if not folder.is_dir() or not any(folder.glob(pattern)):
            raise ModelError(f"{folder}: no {name} ({pattern}); wanted: a Hugging Face model folder with safetensors")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _refuse_changed_logits(config, folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[precision],
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
        model, info = loaded
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    wrong = [f"{kind.split('_')[0]} {min(map(str, info[kind]))}" for kind in _LOADING_FAULTS if info[kind]]
    if wrong:
        raise ModelError(f"{folder}: weights and config.json disagree: {', '.join(wrong)}")
    return Policy(model.eval().to(own_device()), tokenizer)


def _refuse_changed_logits(config: transformers.PretrainedConfig, folder: Path) -> None:
    fields = config.to_dict()
    for name in _LOGIT_CHANGES:
        if fields.get(name) not in (None, 1, 1.0):
            raise ModelError(
                f"{folder}: config.json: {name} = {fields[name]}; wanted: an architecture with plain logits"
            )


def save_policy(policy: Policy, folder: Path) -> None:
    """Write weights, configs and tokenizer, which the first rank does; equal policies give equal bytes."""
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        fields = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in fields.items() if key not in _ORIGIN_FIELDS}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def build_micro(config: MicroModel, *, vocab_size: int, eos_id: int, pad_id: int, seed: int) -> PreTrainedModel:
    """A freshly initialised Qwen3-architecture model: tied embeddings, fp32, evaluation mode."""
    architecture = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(architecture).eval()


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, never to be trained: a reference."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def predicted_logprobs(model: PreTrainedModel, packed: Packed, *, temperature: float) -> Tensor:
    """log p(token | what comes before it) in nats at `temperature`, shape (M,), of the wanted tokens."""

    def read(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor]:
        return (-nn.functional.cross_entropy(logits_MV, targets_M, reduction="none"),)

    return _predicted(model, packed, read, temperature)[0]


def predicted_tokens(model: PreTrainedModel, packed: Packed, *, temperature: float) -> tuple[Tensor, Tensor]:
    """log p(token) of the wanted tokens and the entropy of the distributions that they come from, without gradient.

    Both in nats at `temperature`, shape (M,).
    """

    def read(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_MV = torch.log_softmax(logits_MV, dim=-1)
        return logprobs_MV.gather(1, targets_M[:, None])[:, 0], entropy(logprobs_MV)

    logprobs_M, entropy_M = _predicted(model, packed, read, temperature)
    return logprobs_M, entropy_M


def _predicted(
    model: PreTrainedModel, packed: Packed, read: Callable[[Tensor, Tensor], tuple[Tensor, ...]], temperature: float
) -> tuple[Tensor, ...]:
    """Log-probabilities (M,), then what else `read` makes of logits (M, V) and targets (M,)."""
    hidden_MC, targets_M, head = predicting_hidden(model, packed), packed.targets_M, model.get_output_embeddings()
    if reads_in_parts(head, hidden_MC):
        return read_in_parts(head, hidden_MC, targets_M, temperature=temperature)

    def from_hidden(hidden_MC: Tensor, targets_M: Tensor) -> tuple[Tensor, ...]:
        return read(head_logits(model, hidden_MC, temperature), targets_M)

    return over_vocabulary(model, from_hidden, hidden_MC, targets_M)


def predicting_hidden(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Hidden states (M, C) from which the wanted tokens are predicted."""
    return packed_hidden(model.get_decoder(), packed)[packed.before_M]


def head_logits(model: PreTrainedModel, hidden_MC: Tensor, temperature: float = 1.0) -> Tensor:
    """fp32 logits (M, V), divided by `temperature`."""
    logits_MV = project(model.get_output_embeddings(), hidden_MC).float()
    return logits_MV if temperature == 1.0 else logits_MV / temperature


def over_vocabulary(
    model: PreTrainedModel, read: Callable[..., tuple[Tensor, ...]], *states: Tensor
) -> tuple[Tensor, ...]:
    """What `read` makes of the states (M, ...), token by token, by way of logits of which few are held at once.

    With more than `_LOGIT_ELEMENTS` the tokens are read part by part, and again in the backward pass.
    """
    rows = max(1, _LOGIT_ELEMENTS // model.config.vocab_size)
    parts = list(zip(*(some.split(rows) for some in states), strict=True))
    again = len(parts) > 1 and torch.is_grad_enabled()
    results = [checkpoint(read, *part, use_reentrant=False) if again else read(*part) for part in parts]
    return tuple(torch.cat(found) for found in zip(*results, strict=True))


def entropy(logprobs_MV: Tensor) -> Tensor:
    """Entropy (M,) in nats of whole distributions, without gradient: a measure, not a loss."""
    logprobs_MV = logprobs_MV.detach()
    return -(logprobs_MV.exp() * logprobs_MV).sum(-1)
