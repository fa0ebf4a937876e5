"""Changing how modules of a model that is built already compute, whatever class of transformers they are."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def mix_in(model: nn.Module, mixin: type[nn.Module], fits: Callable[[nn.Module], bool]) -> int:
    """Put `mixin` before the own class of each module of `model` that `fits`, in place; how many there are."""
    mixed: dict[type[nn.Module], type[nn.Module]] = {}
    modules = [module for module in model.modules() if not isinstance(module, mixin) and fits(module)]
    for module in modules:
        own = type(module)
        if own not in mixed:
            mixed[own] = type(f"{mixin.__name__.strip('_')}{own.__name__}", (mixin, own), {})
        module.__class__ = mixed[own]
    return len(modules)
