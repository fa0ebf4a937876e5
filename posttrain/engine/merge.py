"""The mean of two models' weights: theta = share * first + (1 - share) * second.

Kimi k1.5 merges a model of long and one of short chains of thought, without any training (arXiv 2501.12599, section
2.4). It needs two fine-tunings of one base: models that never shared weights have nothing in common, coordinate by
coordinate, and their mean is noise.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain.engine.policy import Policy
from posttrain.errors import ModelError

_NOT_ARCHITECTURE = frozenset(
    ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
)
"""Config fields in which two models of one architecture may differ."""


def merge(first: Policy, second: Policy, *, share: float) -> Policy:
    """A new policy with `share` of the first's weights and the rest of the second's, in the first's precision.

    Raises ModelError naming the first difference when architectures or vocabularies differ, or for a share beyond 0
    to 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ModelError(f"merge: share: got {share}, wanted 0 to 1")
    _refuse_other_architecture(first, second)
    merged = copy.deepcopy(first.model)
    own, others = first.model.state_dict(), second.model.state_dict()
    with torch.no_grad():
        # The state's tensors are the model's own; tied ones come under two names, with the same value twice.
        for name, weight in merged.state_dict().items():
            weight.copy_(_mean(own[name], others[name], share=share))
    return Policy(merged.eval(), first.tokenizer)


def _mean(first: torch.Tensor, second: torch.Tensor, *, share: float) -> torch.Tensor:
    # In fp32: in bf16 the mean of two close weights is often one of them.
    return share * first.float() + (1.0 - share) * second.to(first.device).float()


def _refuse_other_architecture(first: Policy, second: Policy) -> None:
    if type(first.model) is not type(second.model):
        names = type(first.model).__name__, type(second.model).__name__
        raise ModelError(f"merge: got a {names[0]} and a {names[1]}, wanted two models of one architecture")
    mine, other = _settings(first.model), _settings(second.model)
    for name in sorted(set(mine) | set(other)):
        if mine.get(name) != other.get(name):
            raise ModelError(
                f"merge: config.json: {name}: got {mine.get(name)} and {other.get(name)}, "
                "wanted two models of one architecture"
            )
    shapes = [{name: tuple(weight.shape) for name, weight in p.model.state_dict().items()} for p in (first, second)]
    for name in sorted(set(shapes[0]) | set(shapes[1])):
        if shapes[0].get(name) != shapes[1].get(name):
            raise ModelError(
                f"merge: weights {name}: got shapes {shapes[0].get(name)} and {shapes[1].get(name)}, wanted equal ones"
            )
    if first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        raise ModelError("merge: the models have different tokenizers, wanted: the same vocabulary")


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    return {name: value for name, value in model.config.to_dict().items() if name not in _NOT_ARCHITECTURE}
