"""A policy's body with a scalar head: what reward models and value networks are.

Saved, it is an ordinary sequence classifier with one label.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel


def with_scalar_head(policy: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """A classifier with one label: a copy of the policy's body, and a new head."""
    settings = type(policy.config).from_dict(policy.config.to_dict() | {"num_labels": 1})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(settings, dtype=policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return model.eval().to(policy.device)
