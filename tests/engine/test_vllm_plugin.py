"""What two tensor-parallel ranks hold of a saved model, cut up here by hand, is found again piece by piece."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.engine.vllm_plugin import checksum, held_tensors
from posttrain.engine.vllm_weights import differences

WIDTH, HEAD, HEADS, INNER, VOCABULARY = 24, 4, 6, 10, 70

SIZES = {
    "embed.weight": (VOCABULARY, WIDTH),
    "attn.q_proj.weight": (HEADS * HEAD, WIDTH),
    "attn.k_proj.weight": (HEAD, WIDTH),
    "attn.v_proj.weight": (HEAD, WIDTH),
    "attn.q_proj.bias": (HEADS * HEAD,),
    "attn.k_proj.bias": (HEAD,),
    "attn.v_proj.bias": (HEAD,),
    "attn.o_proj.weight": (WIDTH, HEADS * HEAD),
    "mlp.gate_proj.weight": (INNER, WIDTH),
    "mlp.up_proj.weight": (INNER, WIDTH),
    "mlp.down_proj.weight": (WIDTH, INNER),
    "norm.weight": (WIDTH,),
}


def layer(kind: type[nn.Module], parameters: dict[str, Tensor], **attributes: Any) -> nn.Module:
    """A layer as its constructor leaves it, without the process group that it would ask."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    for name, values in attributes.items():
        setattr(made, name, values)
    for name, values in parameters.items():
        made.register_parameter(name, nn.Parameter(values))
    return made


def one_rank(saved: dict[str, Tensor], rank: int) -> nn.Module:
    """Half of the query heads, the one key-value head, half of the inner width, 64 or 6 rows of the vocabulary."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    half = slice(rank * HEADS * HEAD // 2, (rank + 1) * HEADS * HEAD // 2)
    inner = slice(rank * INNER // 2, (rank + 1) * INNER // 2)
    rows = saved["embed.weight"][rank * 64 : (rank + 1) * 64]
    padded = torch.cat([rows, torch.zeros(64 - len(rows), WIDTH)])
    qkv = {
        kind: torch.cat([saved[f"attn.q_proj.{kind}"][half], *(saved[f"attn.{n}_proj.{kind}"] for n in "kv")])
        for kind in ("weight", "bias")
    }
    gate_up = torch.cat([saved[f"mlp.{name}_proj.weight"][inner] for name in ("gate", "up")])
    shared = {"tp_rank": rank, "tp_size": 2}
    model: Any = nn.Module()
    model.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    indices = SimpleNamespace(org_vocab_start_index=rank * 64, org_vocab_end_index=rank * 64 + len(rows))
    model.embed = layer(VocabParallelEmbedding, {"weight": padded}, shard_indices=indices)
    model.attn, model.mlp = nn.Module(), nn.Module()
    heads = {"num_heads": HEADS // 2, "num_kv_heads": 1, "num_kv_head_replicas": 2}
    sizes = {"head_size": HEAD, "v_head_size": HEAD}
    model.attn.qkv_proj = layer(linear.QKVParallelLinear, qkv, **shared, **heads, **sizes)
    o_proj = {"weight": saved["attn.o_proj.weight"][:, half]}
    model.attn.o_proj = layer(linear.RowParallelLinear, o_proj, **shared, input_size_per_partition=HEADS * HEAD // 2)
    model.mlp.gate_up_proj = layer(
        linear.MergedColumnParallelLinear, {"weight": gate_up}, **shared, output_sizes=[INNER, INNER]
    )
    down = {"weight": saved["mlp.down_proj.weight"][:, inner]}
    model.mlp.down_proj = layer(linear.RowParallelLinear, down, **shared, input_size_per_partition=INNER // 2)
    model.norm = layer(nn.Module, {"weight": saved["norm.weight"]})
    return model


def answer(model: nn.Module) -> dict[str, Any]:
    """As posttrain_checksums gives it."""
    held = [
        {
            "name": part.name, "dim": part.dim, "start": part.start, "length": part.tensor.shape[part.dim],
            "dtype": str(part.tensor.dtype).removeprefix("torch."), "checksum": checksum(part.tensor),
        }
        for part in held_tensors(model)
    ]  # fmt: skip
    return {"version": 0, "held": held}


@pytest.fixture(scope="module")
def saved() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=draws) for name, size in SIZES.items()}


def test_checksums_are_of_bytes() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert checksum(values.T) == checksum(torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 5.0])) != checksum(values)
    assert checksum(torch.tensor(0.0)) != checksum(torch.tensor(-0.0)), "equal numbers, other bytes"
    assert checksum(values.bfloat16()) == checksum(values.bfloat16().clone()) != checksum(values)


def test_two_ranks_hold_the_saved_model(saved: dict[str, Tensor]) -> None:
    workers = [answer(one_rank(saved, rank)) for rank in (0, 1)]
    assert differences(workers, saved) == []
    assert set(differences(workers[:1], saved)) == {
        name for name in SIZES if not name.startswith(("attn.k_proj", "attn.v_proj", "norm"))
    }, "half of it is not all of it"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", SIZES)
def test_one_wrong_value_on_one_rank_is_blamed_on_its_tensor(name: str, rank: int, saved: dict[str, Tensor]) -> None:
    wrong = saved[name].clone()
    wrong.view(-1)[-1] += 1.0  # the last row and column, which of what is cut up rank 1 has
    workers = [answer(one_rank(saved | {name: wrong} if rank == its else saved, its)) for its in (0, 1)]
    cut = not name.startswith(("attn.k_proj", "attn.v_proj", "norm"))
    assert differences(workers, saved) == ([] if cut and rank == 0 else [name])


def test_the_trainers_values_are_rounded_as_the_server_rounds_them(saved: dict[str, Tensor]) -> None:
    served = {name: values.bfloat16().float() for name, values in saved.items()}
    workers = [answer(one_rank(served, rank).bfloat16()) for rank in (0, 1)]
    assert differences(workers, saved) == []
    assert differences(workers, {name: values * 1.01 for name, values in saved.items()}) == list(SIZES)


def test_layers_without_a_rule_are_refused() -> None:
    experts: Any = nn.Module()
    experts.w13_weight = nn.Parameter(torch.zeros(2, 3, 4))
    model = nn.Module()
    model.experts = experts
    with pytest.raises(ValueError, match=r"experts\.w13_weight: a parameter of Module; wanted: linear"):
        list(held_tensors(model))
