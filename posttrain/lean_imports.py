"""Optional imports of libraries that no stage uses, left out: they would be four seconds of every stage's start.

transformers' assisted generation imports scikit-learn where it is installed, and DeepSpeed's tuner MLflow; both do
without. While one of these modules is being imported, the package it would load looks absent; before and after it does
not, so that a program that wants the package imports it as always.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

UNUSED = {"transformers.generation.candidate_generator": "sklearn", "deepspeed.autotuning.autotuner": "mlflow"}
"""Importing module -> optional package."""


class _Without(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        package = UNUSED[module.__name__]
        if package in sys.modules:
            super().exec_module(module)
            return
        modules: dict[str, Any] = sys.modules
        modules[package] = None  # which the import system reads as "there is none"
        try:
            super().exec_module(module)
        finally:
            del modules[package]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in UNUSED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Without(fullname, spec.origin)
        return spec


def install() -> None:
    """For this process, once; modules that are imported already stay as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
