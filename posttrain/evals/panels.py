"""The training curves of the report page: which columns of which stage make a plot, in the order of the chain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of training curves."""

    stage: str
    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]
    """(column, label, colour)."""
    percent: bool = False
    zero: bool = False


BEFORE_RL = (
    Panel("base", "Pre-training", "loss (nats per token)", (("train/loss", "loss", "blue"),)),
    Panel("sft", "Cold start", "loss (nats per token)", (("train/loss", "loss", "blue"),)),
)
RL_STEPS = (
    Panel("grpo", "RL: entropy of the policy", "nats per token", (("train/entropy", "entropy", "blue"),), zero=True),
    Panel("grpo", "RL: distance from the cold start", "KL, nats per token", (("kl/k3_token", "KL", "red"),), zero=True),
    Panel(
        "grpo",
        "RL: groups with a signal",
        "share of groups",
        (("train/groups_with_signal", "signal", "orange"),),
        percent=True,
        zero=True,
    ),
)
REJECTION_SAMPLING = (Panel("grpo", "Rejection sampling", "loss (nats per token)", (("train/loss", "loss", "blue"),)),)
REWARD_MODEL = Panel(
    "reward_model",
    "Reward model",
    "pairs ordered right",
    (("reward/pair_accuracy", "accuracy", "green"),),
    percent=True,
)
PREFERENCES = (
    Panel(
        "align", "Preferences", "pairs ordered right", (("reward/pair_accuracy", "accuracy", "green"),), percent=True
    ),
)
LEARNED_RL = (
    Panel("align", "RL on the reward model", "mean score", (("reward/learned", "reward model", "blue"),)),
    Panel("align", "RL on the reward model, as judged", "score by the judge", (("eval/gold", "judge", "green"),)),
)
"""In the place of the preference losses' panel where align.method is RL."""
DISTILLATION = Panel(
    "distill",
    "On-policy distillation",
    "tokens the teacher would have chosen too",
    (("train/agreement", "agreement", "green"),),
    percent=True,
)

SHARES = {
    "accuracy": ("accuracy", "green"),
    "format": ("format", "blue"),
    "language_consistency": ("language", "purple"),
}
"""Reward terms that are shares of the responses, or of their words: label and colour."""


def rewards_panel(terms: frozenset[str]) -> Panel:
    """The reward terms of RL that are shares, of those the run had."""
    lines = tuple((f"reward/{term}", *shown) for term, shown in SHARES.items() if term in terms)
    return Panel("grpo", "RL: rewards", "mean reward term", lines, percent=True)
