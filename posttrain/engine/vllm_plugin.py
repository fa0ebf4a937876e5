"""What runs inside vLLM's own processes: keeping weights replaceable, and replacing them.

On a CPU vLLM packs each linear layer's weights into another format at load and drops the originals; loading weights
afterwards reports success and changes nothing (or fails on a parameter of size 0). So the packing must be off before
the model is built, in every worker process. Workers import this module first, for the class they are to be extended
with (--worker-extension-cls): that import is the place. (An entry point of `vllm.general_plugins` would also do, but
needs installed metadata, which an older build's folder beside the source can shadow.) Names inside vLLM move between
releases: this file and rollout_vllm.py are the only ones that know them (0.32).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

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


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a dict)
                yield name, content.get_tensor(name)


class WeightSync:
    """Methods added to vLLM's workers (--worker-extension-cls), called through POST /collective_rpc."""

    model_runner: Any

    def posttrain_load_weights(self, folder: str) -> dict[str, list[str]]:
        """Load a saved model's safetensors into the running one; names the parameters that got nothing."""
        model = self.model_runner.model
        loaded = model.load_weights(_tensors(Path(folder)))
        return {"missing": sorted({name for name, _ in model.named_parameters()} - loaded)}
