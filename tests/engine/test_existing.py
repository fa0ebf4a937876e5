"""A base model that exists already: what the chain makes of a folder, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from posttrain.chat.template import SPECIAL_TOKENS, TURN_END
from posttrain.config import PathBase
from posttrain.engine.existing import depth_pruned, load_existing
from posttrain.engine.policy import Policy, load_policy, save_policy
from posttrain.errors import ModelError
from tests.engine.conftest import VOCAB, llama_model, micro_model, micro_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> PathBase:
    """A Llama that samples at 0.6 by default, and a student of another architecture."""
    llama = llama_model()
    llama.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9)
    for name, model in (("large", llama), ("small", micro_model())):
        save_policy(Policy(model, micro_tokenizer()), tmp_path / name)
    return PathBase(kind="path", model=str(tmp_path / "large"), student=str(tmp_path / "small"))


def test_a_folder_becomes_a_base_of_the_chain(source: PathBase, tmp_path: Path) -> None:
    """Saved and loaded again, as the chain does: the old tokens keep their rows, and each new one has one id."""
    before = load_policy(Path(source.model), precision="fp32").model
    for place, policy in enumerate(load_existing(source, precision="fp32")):
        save_policy(policy, tmp_path / str(place))
    base, student = (load_policy(tmp_path / str(place), precision="fp32") for place in (0, 1))
    assert [type(p.model).__name__ for p in (base, student)] == ["LlamaForCausalLM", "Qwen3ForCausalLM"]
    for policy in (base, student):
        ids = [policy.tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS]
        assert all(len(one) == 1 for one in ids)
        assert policy.model.config.vocab_size == len(policy.tokenizer) > VOCAB
        assert policy.tokenizer.eos_token == TURN_END and policy.tokenizer.pad_token != TURN_END
        assert policy.model.config.eos_token_id == policy.tokenizer.eos_token_id
        assert policy.model.generation_config.temperature in (None, 1.0), "no sampling default of the model's own"
    old = before.get_input_embeddings().weight
    assert torch.equal(base.model.get_input_embeddings().weight[:VOCAB], old[:VOCAB])


def test_a_pruned_student_keeps_the_first_and_the_last_layer() -> None:
    policy = Policy(micro_model(), micro_tokenizer())
    student = depth_pruned(policy, layers=1)
    assert student.model.config.num_hidden_layers == 1 and policy.model.config.num_hidden_layers == 2
    ids_BT = torch.tensor([[5, 6, 7]])
    assert student.model(input_ids=ids_BT).logits.shape == (1, 3, VOCAB)
    with pytest.raises(ModelError, match="student_layers: got 3, wanted 1 to 2"):
        depth_pruned(policy, layers=3)


def test_a_folder_that_is_none_is_named(source: PathBase, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_existing(source.model_copy(update={"student": str(tmp_path / "nowhere")}), precision="fp32")
