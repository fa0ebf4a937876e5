"""How the page shows stage grpo: RL with a length reward, RL without, or rejection sampling. Its report tells, once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from posttrain.evals.figures import length_and_accuracy
from posttrain.evals.formats import growth, number, signed
from posttrain.evals.inputs import Curve, Inputs, Source
from posttrain.evals.panels import REJECTION_SAMPLING, RL_STEPS, Panel, rewards_panel
from posttrain.records import DataError

Tile = tuple[str, str, str]
"""Label, value, detail."""


@dataclass(frozen=True, slots=True)
class RlView:
    making: str
    """What made the model, in a few words."""
    gain: str
    """What its gain in accuracy is owed to."""
    tile: Tile
    panels: tuple[Panel, ...]
    length: Figure | None
    """Accuracy and tokens per answer over the steps of RL."""
    length_caption: str = ""


def rl_view(inputs: Inputs) -> RlView:
    """Raises DataError where the report or the curve of stage grpo lacks what is to be shown."""
    grpo = inputs.stages["grpo"]
    if "prompts_with_kept" in grpo.values:
        return _rejection_sampling(grpo)
    start, terms = grpo.need("length_reward_start"), reward_terms(grpo)
    rewards = rewards_panel(terms)
    return RlView(
        making=_rl_making(grpo),
        gain="Reinforcement learning",
        tile=_answer_length(grpo) if start is None else _length_reward(grpo, start),
        panels=(rewards, *RL_STEPS) if rewards.lines else RL_STEPS,
        length=_length_figure(grpo, inputs.curves["grpo"], start, accuracy="accuracy" in terms),
        length_caption="No reward for length: what becomes of it by itself."
        if start is None
        else "The length reward starts late: first right, then short.",
    )


def reward_terms(grpo: Source) -> frozenset[str]:
    """The reward terms of the run, which its report tells by their weights."""
    names = (key.removeprefix("reward/") for key in grpo.need("end") if key.startswith("reward/"))
    return frozenset(name.removesuffix("_weight") for name in names if name.endswith("_weight"))


def looks_at_heldout(grpo: Source) -> list[dict[str, float]]:
    """What RL saw on the held-out questions while it ran, by step."""
    looks = grpo.need("heldout")
    return [{"step": int(step), **looks[step]} for step in sorted(looks, key=int)]


def kept_look(grpo: Source) -> dict[str, float]:
    """The look at the weights that are kept: the last one, or with `keep: best` the best one."""
    looks = looks_at_heldout(grpo)
    if "kept_weights" not in grpo.values:
        return looks[-1]
    return {look["step"]: look for look in looks}[grpo.need("kept_weights.step")]


def _rl_making(grpo: Source) -> str:
    best = f", weights of step {grpo.need('kept_weights.step')}" if "kept_weights" in grpo.values else ""
    return f"RL on verifiable rewards{best}"


def _rejection_sampling(grpo: Source) -> RlView:
    kept, sampled, prompts = (grpo.need(key) for key in ("kept", "sampled", "prompts_with_kept"))
    detail = f"right and distinct, of {sampled} sampled; on {prompts} prompts"
    return RlView(
        making="fine-tuned on its own right answers",
        gain="Rejection sampling",
        tile=("Kept to train on", f"{kept} answers", detail),
        panels=REJECTION_SAMPLING,
        length=None,
    )


def _length_reward(grpo: Source, start: int) -> Tile:
    """What changed from the look at the held-out questions when the length reward starts to the weights kept."""
    looks = looks_at_heldout(grpo)
    steps = [look["step"] for look in looks]
    if start not in steps:
        raise DataError(f"{grpo.file}: key 'heldout': got steps {steps}, wanted one at length_reward_start = {start}")
    return ("Length reward", *_change(looks[steps.index(start)], kept_look(grpo)))


def _answer_length(grpo: Source) -> Tile:
    """What changed from the first look at the held-out questions to the weights kept."""
    return ("Length without a reward for it", *_change(looks_at_heldout(grpo)[0], kept_look(grpo)))


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, str]:
    tokens = [look["tokens_correct"] for look in (before, after)]
    points = signed(after["accuracy"] - before["accuracy"])
    return (
        f"{growth(tokens[0], tokens[1])} tokens",
        f"of right answers, from {number(tokens[0])} to {number(tokens[1])}; accuracy {points} points",
    )


def _length_figure(grpo: Source, curve: Curve, start: int | None, *, accuracy: bool) -> Figure:
    """Without a reward for accuracy only the looks at the held-out questions show it."""
    columns = {name: curve.need(name) for name in ("step", "length/correct", "length/wrong")}
    columns["reward/accuracy"] = curve.need("reward/accuracy") if accuracy else [math.nan] * len(columns["step"])
    return length_and_accuracy(looks_at_heldout(grpo), start=start, curve=columns)
