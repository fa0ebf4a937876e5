"""Weight averaging."""

from __future__ import annotations

import copy

import pytest
import torch

from posttrain.config import MicroModel
from posttrain.engine.merge import merge
from posttrain.engine.policy import Policy, build_micro, load_policy, save_policy
from posttrain.errors import ModelError
from tests.engine.conftest import EOS, MICRO, PAD, VOCAB, llama_model, micro_model, micro_tokenizer

LONG, SHORT = (Policy(micro_model(seed), micro_tokenizer()) for seed in (0, 1))


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in policy.model.state_dict().items()}


def test_every_weight_is_the_mean() -> None:
    """UT 9.6: theta = .5 theta_long + .5 theta_short; and with 3/4 by hand on one number."""
    merged = weights(merge(LONG, SHORT, share=0.5))
    for name, weight in merged.items():
        assert torch.equal(weight, 0.5 * weights(LONG)[name] + 0.5 * weights(SHORT)[name]), name
    name = "model.layers.0.self_attn.q_proj.weight"
    long, short = weights(LONG)[name][0, 0].item(), weights(SHORT)[name][0, 0].item()
    assert weights(merge(LONG, SHORT, share=0.75))[name][0, 0].item() == pytest.approx(0.75 * long + 0.25 * short)


def test_the_ends_are_the_models_and_neither_is_touched() -> None:
    before = weights(LONG), weights(SHORT)
    for share, end in ((1.0, before[0]), (0.0, before[1])):
        merged = weights(merge(LONG, SHORT, share=share))
        assert all(torch.equal(merged[name], end[name]) for name in end)
    assert all(torch.equal(before[0][name], weight) for name, weight in weights(LONG).items())
    assert all(torch.equal(before[1][name], weight) for name, weight in weights(SHORT).items())


def test_it_is_symmetric_and_keeps_tied_weights_tied(tmp_path) -> None:
    one, other = weights(merge(LONG, SHORT, share=0.25)), merge(SHORT, LONG, share=0.75)
    assert all(torch.allclose(one[name], weight, atol=1e-7) for name, weight in weights(other).items())
    assert other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight
    save_policy(other, tmp_path)
    again = weights(load_policy(tmp_path, precision="fp32"))
    assert all(torch.equal(again[name], weight) for name, weight in weights(other).items())


def test_bf16_is_averaged_in_fp32() -> None:
    low = [Policy(copy.deepcopy(p.model).to(torch.bfloat16), p.tokenizer) for p in (LONG, SHORT)]
    merged = merge(*low, share=0.3)
    name = "model.norm.weight"
    assert merged.model.dtype == torch.bfloat16
    for name, weight in weights(merged).items():
        exact = 0.3 * weights(low[0])[name].float() + 0.7 * weights(low[1])[name].float()
        assert torch.equal(weight, exact.to(torch.bfloat16)), name


def changed(**fields: int) -> Policy:
    model = MicroModel.model_validate(MICRO.model_dump() | fields)
    return Policy(build_micro(model, vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, seed=0), micro_tokenizer())


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ModelError, match=r"config.json: hidden_size: got 32 and 16, wanted two models of one arch"):
        merge(LONG, changed(hidden_size=16), share=0.5)
    with pytest.raises(ModelError, match=r"config.json: layer_types|config.json: num_hidden_layers"):
        merge(LONG, changed(layers=3), share=0.5)
    with pytest.raises(ModelError, match="got a Qwen3ForCausalLM and a LlamaForCausalLM"):
        merge(LONG, Policy(llama_model(), micro_tokenizer()), share=0.5)
    tokenizer = micro_tokenizer()
    tokenizer.add_tokens(["new"])
    with pytest.raises(ModelError, match="different tokenizers"):
        merge(LONG, Policy(SHORT.model, tokenizer), share=0.5)
    with pytest.raises(ModelError, match=r"share: got 1.5, wanted 0 to 1"):
        merge(LONG, SHORT, share=1.5)
