"""A frozen model on the shelf: the same model, without memory between two readings."""

import pytest
import torch
from torch import nn

from posttrain.engine.policy import frozen_copy
from posttrain.engine.shelf import Shelved
from tests.engine.conftest import micro_model


def held(model: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_reads_as_before_to_the_bit(dtype):
    model, ids = micro_model().to(dtype), torch.arange(40).view(2, 20)
    shelved = Shelved(frozen_copy(model))
    for _ in range(2):
        with torch.no_grad(), shelved.reading() as reference:
            assert torch.equal(reference(ids).logits, model(ids).logits)
            assert reference.get_output_embeddings().weight is reference.get_input_embeddings().weight


def test_between_readings_its_weights_take_no_memory():
    reference = frozen_copy(micro_model())
    whole = held(reference)
    shelved = Shelved(reference)
    assert held(reference) == 0
    with shelved.reading():
        assert held(reference) == whole
    assert held(reference) == 0
    with pytest.raises(RuntimeError, match="nobody"), shelved.reading():
        raise RuntimeError("nobody")
    assert held(reference) == 0


def test_other_weights_stay_and_the_model_it_was_copied_from_does_not_change():
    model = micro_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shelved = Shelved(frozen_copy(model))
    shelved.replace({name: weight + 1 for name, weight in before.items()})
    with shelved.reading() as reference:
        assert all(torch.equal(weight, before[name] + 1) for name, weight in reference.state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_weights_that_are_not_in_the_memory_of_the_cpu_are_left_alone():
    shelved = Shelved(nn.Linear(2, 2, device="meta"))  # type: ignore[arg-type]
    with shelved.reading() as found:
        assert found.weight.shape == (2, 2)
