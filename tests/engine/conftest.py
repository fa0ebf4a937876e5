"""A micro policy small enough for any test: width 32, two layers, vocabulary 64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from posttrain.config import MicroModel
from posttrain.engine.policy import Policy, build_micro

if TYPE_CHECKING:
    from tests.engine.vllm_stand_in import StandIn

collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]
VOCAB = 64
EOS = 2
PAD = 0

MICRO = MicroModel(
    hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, head_dim=8, max_position_embeddings=128
)


def micro_model(seed: int = 0, scale: float = 4.0) -> PreTrainedModel:
    """Weights are scaled up: at their initial size every distribution is nearly uniform and faults stay small."""
    model = build_micro(MICRO, vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


def llama_model() -> PreTrainedModel:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=128, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def micro_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<|endoftext|>": 0, "<unk>": 1, "<|im_end|>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>")


@pytest.fixture
def policy() -> Policy:
    return Policy(micro_model(), micro_tokenizer())


@pytest.fixture
def stand_ins() -> Iterator[Callable[[], StandIn]]:
    """Makes servers that speak vLLM's HTTP; all end with the test."""
    from tests.engine.vllm_stand_in import StandIn

    made: list[StandIn] = []

    def make() -> StandIn:
        made.append(StandIn())
        return made[-1]

    yield make
    for one in made:
        one.die()


@pytest.fixture
def stand_in(stand_ins: Callable[[], StandIn]) -> StandIn:
    return stand_ins()
