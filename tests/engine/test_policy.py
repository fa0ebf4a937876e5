"""Policy folders and log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from posttrain.engine import lm_head
from posttrain.engine import policy as policy_module
from posttrain.engine.packing import Response, pack
from posttrain.engine.policy import (
    Policy,
    build_micro,
    count_parameters,
    load_policy,
    predicted_logprobs,
    predicted_tokens,
    save_policy,
)
from posttrain.errors import ModelError
from tests.engine.conftest import EOS, MICRO, PAD, VOCAB, llama_model, micro_model, micro_tokenizer


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_equal_weights_give_equal_bytes_wherever_they_were_loaded_from(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "first")
    save_policy(load_policy(tmp_path / "first", precision="fp32"), tmp_path / "second")
    save_policy(load_policy(tmp_path / "second", precision="fp32"), tmp_path / "third")
    first, second, third = (folder_bytes(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second == third
    assert not any(str(tmp_path).encode() in content for content in third.values())


def test_loading_gives_back_the_weights_in_the_wanted_precision(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path, precision="fp32").model
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert load_policy(tmp_path, precision="bf16").model.dtype == torch.bfloat16
    assert load_policy(tmp_path, precision="fp32").tokenizer.decode([5, 6]) == "w5 w6"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_named_with_what_is_missing(policy: Policy, tmp_path: Path, missing: str) -> None:
    save_policy(policy, tmp_path)
    (tmp_path / missing).unlink()
    if missing == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=str(tmp_path)) as caught:
        load_policy(tmp_path, precision="fp32")
    assert missing.split(".")[0].replace("model", "safetensors") in str(caught.value)


def test_no_folder_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_policy(tmp_path / "nowhere", precision="fp32")


def test_weights_that_do_not_fit_the_config_are_refused(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    removed = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != removed}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"missing {removed}"):
        load_policy(tmp_path, precision="fp32")


def test_a_half_written_weight_file_is_a_model_error(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(tmp_path, precision="fp32")


def test_micro_models_repeat_by_seed_and_leave_the_global_generator_alone() -> None:
    def build(seed: int) -> torch.Tensor:
        model = build_micro(MICRO, vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, seed=seed)
        return model.get_input_embeddings().weight

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(build(3), build(3))
    assert not torch.equal(build(3), build(4))
    assert torch.equal(before, torch.get_rng_state())


def test_tied_parameters_count_once() -> None:
    model = micro_model()
    # Per layer: q 32*32, k and v 32*16, o 32*32, mlp 3*32*64, two norms of 32, two of 8; last norm 32; embeddings once.
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 8
    assert count_parameters(model) == VOCAB * 32 + 2 * layer + 32


@pytest.mark.parametrize("model", [micro_model(), llama_model()], ids=["qwen3", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_equal_a_row_by_row_log_softmax(model: PreTrainedModel, temperature: float) -> None:
    sequences: list[Response] = [((3, 4), (5, 6, 7, 8, 2)), ((9,), (10, 11)), ((12, 13, 14), (15, 2))]
    packed = pack(sequences)
    with torch.no_grad():
        logprobs, entropies = map(packed.split, predicted_tokens(model, packed, temperature=temperature))
        for row, (prompt, own) in enumerate(sequences):
            logits_TV = model(input_ids=torch.tensor([[*prompt, *own]])).logits[0, len(prompt) - 1 : -1] / temperature
            distributions = torch.distributions.Categorical(logits=logits_TV)
            torch.testing.assert_close(logprobs[row], distributions.log_prob(torch.tensor(own)), atol=1e-5, rtol=0)
            torch.testing.assert_close(entropies[row], distributions.entropy(), atol=1e-5, rtol=0)


def test_logits_held_in_parts_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack([((3, 4), (5, 6, 7)), ((8,), (9, 10, 11))])
    results = []
    for elements in (policy_module._LOGIT_ELEMENTS, 2 * VOCAB):
        monkeypatch.setattr(policy_module, "_LOGIT_ELEMENTS", elements)
        model = micro_model()
        logprobs_M, entropy_M = predicted_tokens(model, packed, temperature=0.9)
        logprobs_M.sum().backward()
        results.append((logprobs_M.detach(), entropy_M, model.get_input_embeddings().weight.grad))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts)


def test_a_large_vocabulary_is_read_in_parts_with_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pack([((3, 4), (5, 6, 7)), ((8,), (9, 10, 11))])
    results = []
    for large in (lm_head.LARGE, VOCAB):
        monkeypatch.setattr(lm_head, "LARGE", large)
        model = micro_model()
        logprobs_M, entropy_M = predicted_tokens(model, packed, temperature=0.9)
        alone_M = predicted_logprobs(model, packed, temperature=0.9)
        assert torch.equal(logprobs_M, alone_M) or large > VOCAB
        torch.testing.assert_close(logprobs_M, alone_M)
        logprobs_M.sum().backward()
        results.append((logprobs_M.detach(), entropy_M, model.get_input_embeddings().weight.grad))
    for plain, parts in zip(*results, strict=True):
        torch.testing.assert_close(plain, parts)


def test_never_more_logits_than_allowed_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_LOGIT_ELEMENTS", 2 * VOCAB)
    model, seen = micro_model(), []
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    logprobs_M, _ = predicted_tokens(model, pack([((3, 4), (5, 6, 7, 8, 9))]), temperature=1.0)
    logprobs_M.sum().backward()
    # Five tokens, two at a time, and once more for the gradient.
    assert sorted(seen) == [1, 1, 2, 2, 2, 2]


def test_the_tokenizer_of_the_fixture_knows_its_special_tokens() -> None:
    assert micro_tokenizer().eos_token_id == EOS
