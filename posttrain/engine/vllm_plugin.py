"""What runs inside vLLM's own processes: keeping weights replaceable, replacing them, and saying what is there.

On a CPU vLLM packs each linear layer's weights into another format at load and drops the originals; loading weights
afterwards reports success and changes nothing (or fails on a parameter of size 0). So the packing must be off before
the model is built, in every worker process. Workers import this module first, for the class they are to be extended
with (--worker-extension-cls): that import is the place. (An entry point of `vllm.general_plugins` would also do, but
needs installed metadata, which an older build's folder beside the source can shadow.) Names inside vLLM move between
releases: this file and vllm_server.py are the only ones that know them (0.32).

vLLM fuses q, k, v and gate, up into one matrix each, pads the vocabulary, and gives each rank of a tensor-parallel
group its share. `held_tensors` undoes this by position: what a worker holds of each tensor of a saved model, under the
name it has there, so that its bytes can be compared with the trainer's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from posttrain.engine.vllm_broadcast import Announced, Backend, Receiver
from posttrain.engine.vllm_ipc import Shared, shared_tensors

SWITCH = "POSTTRAIN_VLLM_SYNC"
"""Environment variable that is 1 in the servers of this project, and nowhere else."""


def keep_weights_replaceable() -> None:
    """Keep weights in torch's own format on a CPU; elsewhere vLLM does not pack them."""
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        ops._supports_onednn = False
        utils.check_cpu_sgl_kernel = lambda n, k, dtype: False


if os.environ.get(SWITCH) == "1":
    keep_weights_replaceable()


def checksum(tensor: Tensor) -> str:
    """Of the values' bytes as they are in memory, in row-major order; type and shape do not enter."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Of which id each token has: token ids go in and come out, so that is all that must agree."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Held:
    """The part of a saved model's tensor that a worker has: `length` rows (columns: dim 1) from `start`."""

    name: str
    tensor: Tensor
    dim: int
    start: int


def held_tensors(model: nn.Module) -> Iterator[Held]:
    """What a worker holds of each tensor of the saved model; those it shares between layers (tied) once.

    Raises ValueError for layers of which it does not know how they are cut up: experts, state spaces, quantised ones.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield from _held(model, module, prefix, kind, parameter)


def _held(model: Any, module: Any, prefix: str, kind: str, parameter: nn.Parameter) -> Iterator[Held]:
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    name = f"{prefix}.{kind}" if prefix else kind
    rank = getattr(module, "tp_rank", 0)
    if isinstance(module, linear.QKVParallelLinear | linear.MergedColumnParallelLinear):
        parent, _, own = prefix.rpartition(".")
        parts, spans = model.packed_modules_mapping.get(own, []), _spans(module)
        if len(parts) != len(spans) or sum(length for _, length in spans) != parameter.shape[0]:
            raise ValueError(f"{name}: {len(parts)} saved tensors in {list(parameter.shape)}; wanted: {spans}")
        offset = 0
        for part, (start, length) in zip(parts, spans, strict=True):
            yield Held(f"{parent}.{part}.{kind}", parameter[offset : offset + length], 0, start)
            offset += length
    elif isinstance(module, VocabParallelEmbedding):
        start, end = module.shard_indices.org_vocab_start_index, module.shard_indices.org_vocab_end_index
        yield Held(name, parameter[: end - start], 0, start)
    elif isinstance(module, linear.RowParallelLinear) and kind == "weight":
        yield Held(name, parameter, 1, rank * module.input_size_per_partition)
    elif isinstance(module, linear.ColumnParallelLinear):
        yield Held(name, parameter, 0, rank * parameter.shape[0])
    elif isinstance(module, linear.LinearBase) or parameter.ndim == 1:  # the same on every rank: norms, biases
        yield Held(name, parameter, 0, 0)
    else:
        raise ValueError(f"{name}: a parameter of {type(module).__name__}; wanted: linear, embedding and norm layers")


def _spans(module: Any) -> list[tuple[int, int]]:
    """(first row in the saved tensor, number of rows) of each tensor that is fused into this layer's matrix."""
    from vllm.model_executor.layers.linear import QKVParallelLinear

    if isinstance(module, QKVParallelLinear):
        # With more ranks than key-value heads, several ranks have the same one.
        own = module.tp_rank // module.num_kv_head_replicas
        rows = [module.num_heads * module.head_size, module.num_kv_heads * module.head_size]
        rows.append(module.num_kv_heads * module.v_head_size)
        return [(module.tp_rank * rows[0], rows[0]), (own * rows[1], rows[1]), (own * rows[2], rows[2])]
    rows = [size // module.tp_size for size in module.output_sizes]
    return [(module.tp_rank * length, length) for length in rows]


def _saved_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a dict)
                yield name, content.get_tensor(name)


class WeightSync:
    """Methods added to vLLM's workers (--worker-extension-cls), called through POST /collective_rpc."""

    model_runner: Any
    rank: int
    device: torch.device
    posttrain_version: int | None = None
    """Of the weights loaded last; None: the random ones of the start."""
    posttrain_receiver: Receiver | None = None

    def posttrain_identity(self) -> dict[str, Any]:
        """What is served, as far as it must be what the trainer has."""
        config = self.model_runner.model_config
        return {
            "architecture": config.hf_config.architectures[0],
            "vocab_size": config.hf_text_config.vocab_size,
            "longest": config.max_model_len,
            "precision": str(config.dtype).removeprefix("torch."),
            "tokenizer": tokenizer_fingerprint(PreTrainedTokenizerFast.from_pretrained(config.tokenizer)),
        }

    def posttrain_load_weights(self, folder: str, version: int) -> dict[str, list[str]]:
        """Load a saved model's safetensors into the running one; names the parameters that got nothing."""
        return self._posttrain_load(_saved_tensors(Path(folder)), version)

    def posttrain_join(self, host: str, port: int, size: int, backend: Backend) -> None:
        """Become one of those to whom a trainer sends weights, and no other's."""
        self.posttrain_receiver = Receiver(host, port, rank=self.rank, size=size, backend=backend, device=self.device)

    def posttrain_receive_weights(self, announced: list[Announced], version: int) -> dict[str, list[str]]:
        """As posttrain_load_weights, of what the trainer sends now."""
        if self.posttrain_receiver is None:
            raise ValueError("weights are sent to a worker that has not joined; wanted: posttrain_join first")
        return self._posttrain_load(self.posttrain_receiver.tensors(announced), version)

    def posttrain_load_shared_weights(self, shared: list[Shared], version: int) -> dict[str, list[str]]:
        """As posttrain_load_weights, out of the trainer's own memory of a GPU."""
        loaded = self._posttrain_load(shared_tensors(shared), version)
        # The trainer may change that memory as soon as it has the answer.
        torch.cuda.synchronize()
        return loaded

    def _posttrain_load(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> dict[str, list[str]]:
        model = self.model_runner.get_model()
        loaded = model.load_weights(tensors)
        missing = sorted({name for name, _ in model.named_parameters()} - loaded)
        if not missing:
            self.posttrain_version = version
        return {"missing": missing}

    def posttrain_weights_version(self) -> dict[str, int | None]:
        return {"version": self.posttrain_version}

    def posttrain_checksums(self) -> dict[str, Any]:
        """The version of the weights, and of each tensor what part is held, as what type, with which checksum."""
        held = [
            {
                "name": part.name,
                "dim": part.dim,
                "start": part.start,
                "length": part.tensor.shape[part.dim],
                "dtype": str(part.tensor.dtype).removeprefix("torch."),
                "checksum": checksum(part.tensor),
            }
            for part in held_tensors(self.model_runner.get_model())
        ]
        return {"version": self.posttrain_version, "held": held}
