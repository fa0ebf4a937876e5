"""The headline of the report page: what the chain did, in eight numbers with their intervals."""

from __future__ import annotations

from posttrain.chain import MODELS
from posttrain.evals.formats import interval, millions, number, percent, share, signed
from posttrain.evals.inputs import Inputs
from posttrain.evals.rl_view import RlView
from posttrain.records import MODES

ARROW = "\N{RIGHTWARDS ARROW}"


def tiles(inputs: Inputs, rl: RlView) -> list[dict[str, str]]:
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
            rl.gain,
            f"{signed(gain['difference'])} points",
            f"grpo over sft, the same questions; 95 % interval {signed(gain['low'])} to {signed(gain['high'])}",
        ),
        rl.tile,
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
