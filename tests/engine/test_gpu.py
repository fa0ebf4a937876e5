"""What only a GPU can show: that the trainer computes there what a CPU computes, and that a server shares the GPU.

Collected where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from posttrain.config import Engine, Generation
from posttrain.engine import rollout_vllm
from posttrain.engine.canary import largest_difference
from posttrain.engine.packing import pack
from posttrain.engine.policy import Policy, build_micro, load_policy, predicted_logprobs, save_policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.engine.rollout_vllm import VllmEngine
from posttrain.engine.vllm_ipc import share
from posttrain.errors import StageError
from posttrain.system import System
from tests.engine.conftest import EOS, MICRO, PAD, micro_model, micro_tokenizer
from tests.engine.test_packing import masks, some_responses
from tests.engine.training import batch, largest_gap, loss_fn, plain_steps, trainer_of, weights

REQUESTS = [Request("a", (5, 6, 7)), Request("b", (9, 10, 11, 12, 13)), Request("c", (20,))]
SAMPLED = Generation(temperature=1.0, max_new_tokens=20)
ENGINE = Engine(
    precision="bf16", zero_stage=2, micro_batch_tokens=4096, rollout="vllm", rollout_batch=8, canary_tolerance=0.1
)
SHARED = System(vllm_weights="ipc", vllm_sleep=True, vllm_memory=0.3)


def test_steps_on_the_gpu_are_those_on_the_cpu() -> None:
    """Three optimizer steps in fp32, clipping and decay included."""
    batches = [batch(2, seed) for seed in range(3)]
    trainer = trainer_of(micro_model())
    device = trainer.model.device
    assert device.type == "cuda"
    stats = [
        trainer.step([(ids_BT.to(device), mask_BT.to(device), total) for ids_BT, mask_BT, total in items], loss_fn)
        for items in batches
    ]
    expected = plain_steps(micro_model(), batches, [s.lr for s in stats])
    assert largest_gap({name: value.cpu() for name, value in weights(trainer).items()}, expected) < 1e-4


def test_packed_responses_have_on_the_gpu_the_logprobs_and_the_gradient_of_the_cpu() -> None:
    packed, found = pack(some_responses(), wanted=masks(some_responses())), []
    for device in ("cpu", "cuda"):
        model = micro_model().to(device)
        logprobs_M = predicted_logprobs(model, packed.to(torch.device(device)), temperature=0.8)
        logprobs_M.sum().backward()
        gradient = model.get_input_embeddings().weight.grad
        found.append((logprobs_M.detach().cpu(), gradient.cpu()))
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)


def test_a_policy_is_loaded_to_the_gpu_and_sampled_there(tmp_path: Path) -> None:
    """The same draws as on a CPU, but for rounding: noise is made from the seed, not by the device."""
    save_policy(Policy(micro_model(), micro_tokenizer()), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", precision="fp32")
    assert policy.model.device.type == "cuda"
    on_gpu, on_cpu = (
        TransformersEngine(Policy(model, policy.tokenizer), batch=8, tolerance=1e-3).generate(
            REQUESTS, samples=8, generation=SAMPLED, seed=3
        )
        for model in (policy.model, micro_model())
    )
    same = [a.response_ids == b.response_ids for a, b in zip(on_gpu, on_cpu, strict=True)]
    assert sum(same) > 0.9 * len(same)
    assert largest_difference(on_gpu, policy.model) < 1e-4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    wide = MICRO.model_copy(update={"head_dim": 64, "hidden_size": 128})
    return build_micro(wide, vocab_size=70, eos_id=EOS, pad_id=PAD, seed=0).to("cuda", torch.bfloat16)


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel) -> Iterator[VllmEngine]:
    made = VllmEngine(Policy(model, micro_tokenizer()), engine=ENGINE, system=SHARED)
    yield made
    made.close()


def change(model: PreTrainedModel) -> None:
    """Turn a part of each row around: every weight may change, and none grows, nor bf16's error with it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.roll(1, dims=-1))


@pytest.mark.vllm
@pytest.mark.parametrize("transport", ["ipc", "file"])
def test_a_server_on_the_same_gpu_takes_weights(transport: str, engine: VllmEngine, model: PreTrainedModel) -> None:
    """The engine itself compares the bytes of all parameters, and lets the canary sing."""
    engine._system = SHARED.model_copy(update={"vllm_weights": transport})
    try:
        for _ in range(2):
            change(model)
            engine.load_weights(model, engine.version + 1)
            rollouts = engine.generate(REQUESTS * 8, samples=4, generation=SAMPLED, seed=3)
            assert largest_difference(rollouts, model) < 0.1
            assert {version for r in rollouts for version in r.version_per_token} == {engine.version}
    finally:
        engine._system = SHARED


@pytest.mark.vllm
def test_other_weights_than_the_trainers_are_refused(
    engine: VllmEngine, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shared stays as it was for one parameter: it alone is named."""
    name = "model.layers.1.mlp.down_proj.weight"
    old = model.get_parameter(name).detach().clone()
    monkeypatch.setattr(rollout_vllm, "share", lambda tensors: share(dict(tensors) | {name: old}))
    change(model)
    with pytest.raises(StageError, match=rf"1 of \d+ parameters are not the trainer's: {name}$"):
        engine.load_weights(model, engine.version + 1)
    monkeypatch.undo()
    engine.load_weights(model, engine.version + 1)


@pytest.mark.vllm
def test_a_server_that_sleeps_gives_its_memory_back(engine: VllmEngine, model: PreTrainedModel) -> None:
    """A third of the GPU was its; asleep, most of that is free for the trainer, and awake it samples as before."""
    engine.load_weights(model, engine.version + 1)
    awake, total = torch.cuda.mem_get_info()
    engine.pause()
    asleep, _ = torch.cuda.mem_get_info()
    assert asleep - awake > 0.2 * total
    with pytest.raises(StageError, match="no weights since pause"):
        engine.generate(REQUESTS, samples=1, generation=SAMPLED, seed=0)
    change(model)
    engine.resume()
    engine.load_weights(model, engine.version + 1)
    assert torch.cuda.mem_get_info()[0] < awake + 0.05 * total
    rollouts = engine.generate(REQUESTS * 8, samples=4, generation=SAMPLED, seed=4)
    assert largest_difference(rollouts, model) < 0.1
