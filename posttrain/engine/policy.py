"""Policies: loading, saving and building causal language models, and the log-probabilities that training uses.

A policy folder is a plain Hugging Face folder (config.json, model.safetensors, tokenizer.json), so that any other tool
reads it. Equal weights give equal bytes: no date, no absolute path. Log-probabilities come from the hidden states of
the wanted positions only, because at small widths the LM head over all positions costs more than the rest.

Shapes: B sequences, T tokens, N wanted tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import json
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
from posttrain.engine.distributed import own_device, rank
from posttrain.errors import ModelError

# Stages show their own progress.
transformers.utils.logging.disable_progress_bar()

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

_LOGIT_ELEMENTS = 2**27
"""Logits held at once (512 MiB in fp32); beyond it the head is recomputed in the backward pass, chunk by chunk."""

_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config fields of architectures that alter logits after the LM head, which `wanted_logits` does not do."""

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


def _head(model: PreTrainedModel, hidden_NC: Tensor) -> Tensor:
    return model.get_output_embeddings()(hidden_NC).float()


def _head_logprobs(model: PreTrainedModel, hidden_NC: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    logits_NV = _head(model, hidden_NC)
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    return -nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")


def wanted_hidden(
    model: PreTrainedModel,
    ids_BT: Tensor,
    wanted_BT: Tensor,
    *,
    positions_BT: Tensor | None = None,
    attention_B1TT: Tensor | None = None,
) -> Tensor:
    """Hidden states (N, C) from which the tokens at `wanted_BT` (bool, row-major) are predicted.

    Without `attention_B1TT` attention is plainly causal, which is right for right-padded rows: what comes after a token
    cannot change it. Packed rows need positions and a block-diagonal mask: see posttrain.engine.batching.
    """
    if bool(wanted_BT[:, 0].any()):
        raise ValueError("wanted_BT[:, 0] holds True; wanted: False, because nothing comes before the first token")
    # The cache must stay off: transformers would build one, and then ignore position ids that start anew.
    output = model.get_decoder()(
        input_ids=ids_BT, attention_mask=attention_B1TT, position_ids=positions_BT, use_cache=False
    )
    return output.last_hidden_state[:, :-1][wanted_BT[:, 1:]]


def wanted_logits(
    model: PreTrainedModel,
    ids_BT: Tensor,
    wanted_BT: Tensor,
    *,
    positions_BT: Tensor | None = None,
    attention_B1TT: Tensor | None = None,
) -> Tensor:
    """fp32 logits (N, V) of the distributions of the tokens at `wanted_BT`, before any temperature."""
    hidden_NC = wanted_hidden(model, ids_BT, wanted_BT, positions_BT=positions_BT, attention_B1TT=attention_B1TT)
    return _head(model, hidden_NC)


def wanted_logprobs(
    model: PreTrainedModel,
    ids_BT: Tensor,
    wanted_BT: Tensor,
    *,
    temperature: float,
    positions_BT: Tensor | None = None,
    attention_B1TT: Tensor | None = None,
) -> Tensor:
    """log p(token) in nats at `temperature`, shape (N,), of the tokens at `wanted_BT` in row-major order."""
    hidden_NC = wanted_hidden(model, ids_BT, wanted_BT, positions_BT=positions_BT, attention_B1TT=attention_B1TT)
    targets_N = ids_BT[wanted_BT]
    rows = max(1, _LOGIT_ELEMENTS // model.config.vocab_size)
    if len(targets_N) <= rows or not torch.is_grad_enabled():
        pairs = zip(hidden_NC.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([_head_logprobs(model, hidden, targets, temperature) for hidden, targets in pairs])
    return torch.cat(
        [
            checkpoint(_head_logprobs, model, hidden, targets, temperature, use_reentrant=False)
            for hidden, targets in zip(hidden_NC.split(rows), targets_N.split(rows), strict=True)
        ]
    )


def sequence_logprobs(model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor, *, temperature: float) -> Tensor:
    """log p(token t | tokens < t) in nats, shape (B, T); 0 at t = 0 and where `mask_BT` is 0.

    Rows are right-padded. `mask_BT` is 1 on the tokens wanted: all real ones, or only the trained ones, which is
    cheaper because the LM head then runs on those alone.
    """
    wanted_BT = mask_BT.bool().clone()
    wanted_BT[:, 0] = False
    logprobs_N = wanted_logprobs(model, ids_BT, wanted_BT, temperature=temperature)
    return torch.zeros(ids_BT.shape, dtype=torch.float32, device=ids_BT.device).masked_scatter(wanted_BT, logprobs_N)
