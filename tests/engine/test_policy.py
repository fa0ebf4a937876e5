"""Policy folders and log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.engine import policy as policy_module
from posttrain.engine.batching import pad
from posttrain.engine.policy import (
    Policy,
    build_micro,
    count_parameters,
    load_policy,
    save_policy,
    sequence_logprobs,
    wanted_logits,
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
def test_logprobs_equal_a_row_by_row_log_softmax(model: torch.nn.Module, temperature: float) -> None:
    sequences = [[3, 4, 5, 6, 7, 8, 2], [9, 10, 11], [12, 13, 14, 15, 2]]
    ids_BT, mask_BT = pad(sequences, pad_id=PAD)
    with torch.no_grad():
        logprobs_BT = sequence_logprobs(model, ids_BT, mask_BT, temperature=temperature)
        for row, ids in enumerate(sequences):
            logits_TV = model(input_ids=torch.tensor([ids])).logits[0] / temperature
            wanted = torch.log_softmax(logits_TV, -1)[range(len(ids) - 1), ids[1:]]
            torch.testing.assert_close(logprobs_BT[row, 1 : len(ids)], wanted, atol=1e-5, rtol=0)
            assert logprobs_BT[row, 0] == 0
            assert not logprobs_BT[row, len(ids) :].any()


def test_a_narrower_mask_gives_the_same_values_where_it_is_one() -> None:
    model = micro_model()
    ids_BT, mask_BT = pad([[3, 4, 5, 6, 7], [8, 9, 10, 11]])
    narrow_BT = mask_BT.clone()
    narrow_BT[:, :3] = 0
    with torch.no_grad():
        wide = sequence_logprobs(model, ids_BT, mask_BT, temperature=1.0)
        torch.testing.assert_close(sequence_logprobs(model, ids_BT, narrow_BT, temperature=1.0), wide * narrow_BT)


def test_chunked_head_gives_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    ids_BT, mask_BT = pad([[3, 4, 5, 6, 7], [8, 9, 10, 11]])
    results = []
    for elements in (policy_module._LOGIT_ELEMENTS, 3 * VOCAB):
        monkeypatch.setattr(policy_module, "_LOGIT_ELEMENTS", elements)
        model = micro_model()
        logprobs_BT = sequence_logprobs(model, ids_BT, mask_BT, temperature=0.9)
        logprobs_BT.sum().backward()
        results.append((logprobs_BT.detach(), model.get_input_embeddings().weight.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_wanted_logits_refuse_the_first_position() -> None:
    ids_BT, mask_BT = pad([[3, 4, 5]])
    with pytest.raises(ValueError, match="first token"):
        wanted_logits(micro_model(), ids_BT, mask_BT.bool())


def test_the_tokenizer_of_the_fixture_knows_its_special_tokens() -> None:
    assert micro_tokenizer().eos_token_id == EOS
