"""The headline of the report page: what the chain did, in eight numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.chain import MODELS
from posttrain.evals.formats import growth, interval, millions, number, percent, share, signed
from posttrain.evals.inputs import Inputs, Source
from posttrain.records import MODES, DataError

ARROW = "\N{RIGHTWARDS ARROW}"


def tiles(inputs: Inputs) -> list[dict[str, str]]:
    """The headline: what the chain did, in eight numbers with their intervals."""
    models = inputs.evaluations
    base, sft, grpo, fuse, teacher, student = (models[name] for name in MODELS)
    first, last = base.need("think.avg"), teacher.need("think.avg")
    gain = grpo.need("paired_to_previous")
    mixing = [model.need("think.language_mixing") for model in (sft, grpo)]
    modes = [fuse.need(f"{mode}.avg.value") for mode in MODES]
    win = inputs.stages["align"].need("win_rate")
    errors = [model.need("think.ece") for model in (sft, teacher)]
    kept = share(student.need("think.avg.value"), teacher.need("think.avg.value"))
    small = student.need("parameters")
    size = small / teacher.need("parameters")
    rows = (
        (
            "Accuracy, base to aligned",
            f"{percent(first['value'])} {ARROW} {percent(last['value'])}",
            f"with thinking, on held-out questions; 95 % intervals {interval(first)} and {interval(last)}",
        ),
        (
            "Rejection sampling" if by_rft(inputs.stages["grpo"]) else "Reinforcement learning",
            f"{signed(gain['difference'])} points",
            f"grpo over sft, the same questions; 95 % interval {signed(gain['low'])} to {signed(gain['high'])}",
        ),
        method_tile(inputs.stages["grpo"]),
        (
            "Language mixing",
            f"{percent(mixing[0])} {ARROW} {percent(mixing[1])}",
            "of thoughts with words of a second script, sft to grpo",
        ),
        (
            "Two modes in one model",
            f"{percent(modes[0])} / {percent(modes[1])}",
            f"thinking / answering directly; {percent(fuse.need('mode_following'))} of the flags are followed",
        ),
        (
            "Aligned against fused",
            f"{percent(win['value'])} wins",
            f"judged on the same prompts, ties half; 95 % interval {interval(win)}",
        ),
        (
            "The student keeps",
            kept,
            f"of the teacher's accuracy with {percent(size)} of its parameters ({millions(small)})",
        ),
        (
            "Calibration error",
            f"{number(errors[0], 3)} {ARROW} {number(errors[1], 3)}",
            "of answer consistency (ECE), sft to aligned",
        ),
    )
    return [{"label": label, "value": value, "detail": detail} for label, value, detail in rows]


def method_tile(grpo: Source) -> tuple[str, str, str]:
    """What the length reward did; of rejection sampling, what it kept."""
    if by_rft(grpo):
        kept, sampled, prompts = (grpo.need(key) for key in ("kept", "sampled", "prompts_with_kept"))
        return "Kept to train on", f"{kept} answers", f"right and distinct, of {sampled} sampled; on {prompts} prompts"
    before, after = length_reward(grpo)
    tokens = [look["tokens_correct"] for look in (before, after)]
    change = signed(after["accuracy"] - before["accuracy"])
    return (
        "Length reward",
        f"{growth(tokens[0], tokens[1])} tokens",
        f"of right answers, from {number(tokens[0])} to {number(tokens[1])}; accuracy {change} points",
    )


def by_rft(grpo: Source) -> bool:
    """Whether stage grpo fine-tuned on right samples (grpo.method: rft), which its report tells by what it kept."""
    return "prompts_with_kept" in grpo.values


def looks_at_heldout(grpo: Source) -> list[dict[str, float]]:
    """What RL saw on the held-out questions while it ran, by step."""
    looks = grpo.need("heldout")
    return [{"step": int(step), **looks[step]} for step in sorted(looks, key=int)]


def length_reward(grpo: Source) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The looks at the held-out questions when the length reward starts and at the end of RL."""
    start, looks = grpo.need("length_reward_start"), looks_at_heldout(grpo)
    steps = [look["step"] for look in looks]
    if start not in steps:
        raise DataError(f"{grpo.file}: key 'heldout': got steps {steps}, wanted one at length_reward_start = {start}")
    return looks[steps.index(start)], looks[-1]
