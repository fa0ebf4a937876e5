"""A policy's body with a scalar head: what reward models and value networks are.

Saved, it is an ordinary sequence classifier with one label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.engine.policy import DTYPES, Precision
from posttrain.errors import ModelError


def with_scalar_head(policy: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """A classifier with one label: a copy of the policy's body, and a new head."""
    settings = type(policy.config).from_dict(policy.config.to_dict() | {"num_labels": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(settings, dtype=policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return model.eval().to(policy.device)


def load_reward_model(folder: Path, tokenizer: PreTrainedTokenizerFast, *, precision: Precision) -> PreTrainedModel:
    """The classifier of a folder, in evaluation mode and without gradients, for responses in `tokenizer`'s ids.

    Raises ModelError where there is none, where it has not one label, or where its vocabulary is another.
    """
    if not folder.is_dir():  # which transformers would ask the hub for
        raise ModelError(f"{folder}: cannot be loaded as a reward model: no such folder")
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=DTYPES[precision], output_loading_info=True
        )
        own = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a reward model: {error}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: no weights for {missing[0]}; wanted: a model of stage reward_model")
    if model.config.num_labels != 1:
        raise ModelError(f"{folder}: got {model.config.num_labels} labels, wanted 1: a reward")
    if own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(f"{folder}: its tokenizer is not the policy's, wanted: the same vocabulary")
    return model.requires_grad_(False).eval()
