"""Divergence between a student and a teacher over the full vocabulary (Qwen3 report, section 4.5; arXiv 2306.13649).

Reverse KL makes the student give up what the teacher finds unlikely, which suits a student that cannot do everything;
forward KL makes it cover all that the teacher does. Both at the same temperature, on the student's own samples.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher) (N,) in nats, from logits: sum_v p_s (log p_s - log p_t)."""
    return _kl(torch.log_softmax(student_NV.float(), -1), torch.log_softmax(teacher_NV.float(), -1))


def forward_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(teacher || student) (N,) in nats, from logits."""
    return _kl(torch.log_softmax(teacher_NV.float(), -1), torch.log_softmax(student_NV.float(), -1))


def _kl(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    return (first_NV.exp() * (first_NV - second_NV)).sum(-1)


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"reverse": reverse_kl, "forward": forward_kl}
