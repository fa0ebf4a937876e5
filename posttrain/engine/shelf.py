"""Frozen models on a CPU that are in memory only while somebody reads with them.

A reference is asked for a moment of each step, and would stand beside the activations of all the rest. On the shelf its
weights lie in a file without a name, which goes with the process; to be read with, they come into memory where the
activations of the last step were.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Shelved:
    """Takes over `model`, whose weights are there only within `reading` from then on. On a GPU they just stay.

    Raises OSError where the folder for temporary files has no room for them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._parameters = [p for p in model.parameters() if p.device.type == "cpu"]
        self._shapes = [p.shape for p in self._parameters]
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the object)
        self._put_down()

    @contextmanager
    def reading(self) -> Iterator[PreTrainedModel]:
        """The model. What is written to its weights is lost afterwards; see `replace`."""
        self._take_up()
        try:
            yield self._model
        finally:
            self._let_go()

    def replace(self, weights: Mapping[str, Tensor]) -> None:
        """Other weights from now on: a state dict of the model."""
        self._take_up()
        self._model.load_state_dict(weights)
        self._put_down()

    def _take_up(self) -> None:
        self._file.seek(0)
        for parameter, shape in zip(self._parameters, self._shapes, strict=True):
            weights = torch.empty(shape, dtype=parameter.dtype)
            room = _bytes(weights)
            if self._file.readinto(room) != room.nbytes:
                raise OSError(f"the weights on the shelf end before {room.nbytes:,} bytes of {tuple(shape)}")
            parameter.data = weights

    def _put_down(self) -> None:
        self._file.seek(0)
        for parameter in self._parameters:
            self._file.write(_bytes(parameter.detach().contiguous()))
        self._file.flush()
        self._let_go()

    def _let_go(self) -> None:
        for parameter in self._parameters:
            parameter.data = parameter.new_empty(0)


def _bytes(weights: Tensor) -> Any:
    """The memory of a contiguous tensor."""
    return weights.flatten().view(torch.uint8).numpy().data
