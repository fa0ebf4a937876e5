"""Base models that exist already: from a model hub, a folder, or a GGUF file inside an installed Python package.

Whatever the source, what comes out is ready for the chain: chat tokens are single tokens, `<|im_end|>` ends a turn,
padding is not the end of a turn (or its loss would be masked away).
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from posttrain.chat.template import SPECIAL_TOKENS, install_template
from posttrain.config import HubBase, PackageBase, PathBase
from posttrain.engine.policy import DTYPES, Policy, Precision, load_policy
from posttrain.errors import ModelError


def load_existing(source: HubBase | PathBase | PackageBase, *, precision: Precision) -> tuple[Policy, Policy]:
    """(base, student base), prepared for chat; raises ModelError naming what cannot be loaded."""
    if isinstance(source, HubBase):
        first, second = (
            _from_hub(name, precision=precision, trust_remote_code=source.trust_remote_code)
            for name in (source.model, source.student)
        )
    elif isinstance(source, PathBase):
        first, second = (load_policy(Path(folder), precision=precision) for folder in (source.model, source.student))
    else:
        first = _from_package(source.package, source.file, precision=precision)
        second = depth_pruned(first, layers=source.student_layers)
    return prepare_chat(first), prepare_chat(second)


def prepare_chat(policy: Policy) -> Policy:
    """Add the chat tokens that the vocabulary lacks, with rows of the mean embedding, and install the template."""
    vocabulary = policy.tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        policy.tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if len(policy.tokenizer) > policy.model.get_input_embeddings().num_embeddings:
        policy.model.resize_token_embeddings(len(policy.tokenizer), mean_resizing=True)
    install_template(policy.tokenizer)
    policy.model.config.eos_token_id = policy.tokenizer.eos_token_id
    policy.model.config.pad_token_id = policy.tokenizer.pad_token_id
    # None of the sampling defaults that the model came with.
    policy.model.generation_config = GenerationConfig.from_model_config(policy.model.config)
    return policy


def depth_pruned(policy: Policy, *, layers: int) -> Policy:
    """A copy with `layers` of the decoder layers, evenly spaced, first and last included: where a student may start."""
    model = copy.deepcopy(policy.model)
    every: torch.nn.ModuleList = model.get_decoder().layers
    if not 1 <= layers <= len(every):
        raise ModelError(f"base.student_layers: got {layers}, wanted 1 to {len(every)}, the layers of the base")
    kept = sorted({round(i * (len(every) - 1) / max(1, layers - 1)) for i in range(layers)})
    model.get_decoder().layers = torch.nn.ModuleList(every[i] for i in kept)
    for place, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return Policy(model, policy.tokenizer)


def _from_hub(name: str, *, precision: Precision, trust_remote_code: bool) -> Policy:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=DTYPES[precision], trust_remote_code=trust_remote_code, use_safetensors=True
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"base.model: '{name}': {error}; wanted: a model id that can be reached or is cached"
        ) from error
    return Policy(model.eval(), tokenizer)


def _from_package(package: str, file: str, *, precision: Precision) -> Policy:
    """A GGUF file's weights as an ordinary, trainable model.

    transformers marks a model loaded from GGUF as quantised and will neither save nor train it, so its state goes into
    a fresh model of the same config. The file's tokenizer loses the split of digits, which is put back.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError(f"base.package: '{package}' is not installed; wanted: a package that ships {file}")
    folder = Path(spec.origin).parent
    if not (folder / file).is_file():
        raise ModelError(f"base.file: {folder / file}: no such file")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return Policy(model.to(DTYPES[precision]).eval(), tokenizer)
