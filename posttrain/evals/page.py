"""reports/index.html: one self-contained page from the small files that the stages left.

Every number comes from a file and every figure names its own; a missing key stops the page. No script, no network, no
date: equal inputs give equal bytes. What a model wrote is escaped like any other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from posttrain.chain import MODELS
from posttrain.chat.split import split_response
from posttrain.chat.template import END_OF_TEXT, THINK_OPEN, TURN_END
from posttrain.evals import across_figures, figures
from posttrain.evals.across import win_matrix
from posttrain.evals.figures import Line
from posttrain.evals.formats import highlight, interval, millions, number, percent, signed
from posttrain.evals.inputs import Inputs, Source
from posttrain.evals.intervals import wilson
from posttrain.evals.panels import BEFORE_RL, DISTILLATION, LEARNED_RL, PREFERENCES, REWARD_MODEL, Panel
from posttrain.evals.reward_curve import looks_of, reward_curve
from posttrain.evals.rl_view import RlView, rl_view
from posttrain.evals.rows import ModeSamples, QuestionRow
from posttrain.evals.tiles import tiles
from posttrain.rewards.language import main_script

MAKING: Mapping[str, str] = {
    "base": "pre-trained on mixed habits",
    "sft": "long-CoT cold start",
    "fuse": "two modes, one model",
    "align": "preferences",
    "distill": "smaller student",
}
"""How each model was made; of grpo its method tells."""
LEARNED_RL_MAKING = "RL on the reward model"

DOMAIN_COLORS = ("muted", "orange", "purple", "blue", "green")


def build_page(inputs: Inputs, across: Mapping[str, Any], *, prompts: int) -> str:
    """The whole page; `prompts` held-out questions are shown with all answers.

    `across`: what posttrain.evals.across.compare_models says of the rows of `inputs`.
    """
    rl = rl_view(inputs)
    environment = Environment(
        loader=PackageLoader("posttrain.evals"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pct": percent,
        "signed": signed,
        "num": number,
        "millions": millions,
        "interval": interval,
    }
    view = {
        "models": [model_view(inputs, model, making(inputs, rl)[model]) for model in MODELS],
        "tiles": tiles(inputs, rl),
        "curate": inputs.stages["curate"].values,
        "drops": drop_view(inputs.stages["curate"]),
        "bars": bar_groups(inputs),
        "prefer": inputs.stages["prefer"].values,
        "questions": questions(inputs, prompts),
        "palette": figures.PALETTE,
        "panels": [panel_view(inputs, panel, place) for place, panel in enumerate(panels(inputs, rl))],
        "figures": draw(inputs, across, rl),
        "length_caption": rl.length_caption,
        "reward_sentence": inputs.stages["align"].need("rl.sentence") if by_learned_rl(inputs) else "",
    }
    return environment.get_template("report.html").render(view)


def by_learned_rl(inputs: Inputs) -> bool:
    """Whether stage align trained on the reward model's score, and not on pairs."""
    return "rl" in inputs.stages["align"].values


def align_curve(inputs: Inputs) -> Figure:
    """What RL on the reward model did to its score and to gold."""
    align = inputs.stages["align"]
    return reward_curve(looks_of(align), kept=align.need("rl.kept_step"))


def making(inputs: Inputs, rl: RlView) -> dict[str, str]:
    """What made each model."""
    return {**MAKING, "grpo": rl.making, **({"align": LEARNED_RL_MAKING} if by_learned_rl(inputs) else {})}


def panels(inputs: Inputs, rl: RlView) -> list[Panel]:
    """The training curves of the run, in the order of the chain."""
    aligned = LEARNED_RL if by_learned_rl(inputs) else PREFERENCES
    return [*BEFORE_RL, *rl.panels, REWARD_MODEL, *aligned, DISTILLATION]


def model_view(inputs: Inputs, model: str, making: str) -> dict[str, Any]:
    """One box of the chain and one row of the table."""
    source = inputs.evaluations[model]
    pair = source.need("paired_to_previous")
    return {
        "name": model,
        "making": making,
        "file": source.file,
        "size": source.need("parameters") / max(s.need("parameters") for s in inputs.evaluations.values()),
        "pair": pair,
        "best_k": max(source.need("think.pass_at_k"), key=int),
        **{
            key: source.need(key)
            for key in ("parameters", "questions", "samples", "think", "no_think", "mode_following")
        },
    }


def draw(inputs: Inputs, across: Mapping[str, Any], rl: RlView) -> dict[str, Markup]:
    """The single figures, as SVG."""
    grade, models = inputs.stages["grade"], inputs.evaluations
    path = [
        {
            "model": name,
            "tokens": models[name].need("think.tokens_mean"),
            "accuracy": models[name].need("think.avg.value"),
            "low": models[name].need("think.avg.low"),
            "high": models[name].need("think.avg.high"),
        }
        for name in MODELS
    ]

    def named(key: str, *names: str) -> dict[str, Any]:
        return {name: models[name].need(key) for name in names}

    drawn = {
        "journey": (figures.journey(path), "Tokens per answer against accuracy, model by model"),
        "pass_rates": (
            figures.pass_rate_histogram(
                grade.need("histogram"), kept=(grade.need("min_pass_rate"), grade.need("max_pass_rate"))
            ),
            "Prompts by pass rate",
        ),
        "reliability": (
            across_figures.reliability(across["calibration"]),
            "Accuracy against confidence, model by model",
        ),
        "wins": (
            across_figures.win_matrix(win_matrix(across["win_rates"])),
            "Win rate of each model over each other one, in per cent",
        ),
        "domains": (
            figures.domains(named("think.by_domain", "base", "sft", "grpo", "align", "distill"), DOMAIN_COLORS),
            "Accuracy of each model by domain",
        ),
        "budget": (
            figures.budgets(named("budget", "fuse", "align", "distill"), ("orange", "blue", "green")),
            "Accuracy at thinking budgets",
        ),
    }
    if by_learned_rl(inputs):
        drawn["reward_curve"] = (align_curve(inputs), "Scores against the square root of KL, look by look")
    if rl.length is not None:
        drawn["length"] = (rl.length, "Accuracy and tokens per answer over the steps of RL")
    return {name: Markup(figures.inline_svg(figure, name, description=text)) for name, (figure, text) in drawn.items()}


def panel_view(inputs: Inputs, panel: Panel, place: int) -> dict[str, Any]:
    curve = inputs.curves[panel.stage]
    lines = [Line(label, curve.need(column), color) for column, label, color in panel.lines]
    figure = figures.curves(curve.need("step"), lines, unit=panel.unit, percent=panel.percent, zero=panel.zero)
    svg = figures.inline_svg(figure, f"panel{place}", description=f"{panel.title}: {panel.unit} by step")
    return {"title": panel.title, "file": curve.file, "svg": Markup(svg)}


def drop_view(curate: Source) -> list[dict[str, Any]]:
    """The drop table by filter: rows in and out, and each reason with its examples."""
    filters: dict[str, dict[str, Any]] = {}
    for row in curate.need("drops"):
        here = filters.setdefault(
            row["filter"],
            {"name": row["filter"], "rows_in": row["rows_in"], "rows_out": row["rows_out"], "reasons": []},
        )
        if row["reason"]:
            here["reasons"].append(row)
    most = max((one["rows_in"] for one in filters.values()), default=1)
    return [
        one | {"share": one["rows_out"] / most, "lost": (one["rows_in"] - one["rows_out"]) / most}
        for one in filters.values()
    ]


def bar_groups(inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    """Bars with intervals: reward model, win rate by what decided, teacher against student."""
    models, win = inputs.evaluations, inputs.stages["align"].need("win_rate")
    looks, note = inputs.stages["distill"].need("heldout"), "thinking, seen by the stage itself"

    def bar(label: str, value: Mapping[str, float], color: str, note: str = "") -> dict[str, Any]:
        return {"label": label, **value, "color": color, "note": note}

    decided = {"by_correct": "right against wrong", "by_script": "one script", "by_length": "shorter", "ties": "tied"}
    sizes = {name: millions(models[name].need("parameters")) for name in ("align", "distill")}
    return {
        "reward_model": reward_bars(inputs.stages["reward_model"]),
        "win": [
            bar("align wins", win, "blue"),
            *(
                bar(label, {"value": win[key]}, "gone", "" if key == "ties" else "decides")
                for key, label in decided.items()
            ),
        ],
        "distill": [
            bar("teacher, thinking", models["align"].need("think.avg"), "blue", sizes["align"]),
            bar("student, thinking", models["distill"].need("think.avg"), "green", sizes["distill"]),
            bar("teacher, direct", models["align"].need("no_think.avg"), "blue"),
            bar("student, direct", models["distill"].need("no_think.avg"), "green"),
            *(
                bar(f"student {label}", {"value": looks[key]["think"]["accuracy"]}, color, note)
                for key, label, color in (
                    ("before_on_policy", "before on-policy KL", "gone"),
                    ("by_rl", "after RL instead", "gone"),
                    ("after_on_policy", "after on-policy KL", "green"),
                )
            ),
        ],
    }


def reward_bars(reward: Source) -> list[dict[str, Any]]:
    """Accuracy on unseen pairs with Wilson intervals: all, and by whether the shorter response was chosen."""
    groups = {"all": (reward.need("heldout.accuracy"), reward.need("heldout_pairs"))}
    sizes = reward.need("heldout.pairs_by_length")
    groups |= {name: (value, sizes[name]) for name, value in reward.need("heldout.accuracy_by_length").items()}
    return [
        {"label": name.replace("_", " "), "color": "blue", "note": f"{size} pairs"}
        | wilson(value * size, size).to_json()
        for name, (value, size) in groups.items()
    ]


def questions(inputs: Inputs, prompts: int) -> list[dict[str, Any]]:
    """The first held-out questions with the first sample of every model in both modes."""
    shown = []
    for place, row in enumerate(inputs.rows[MODELS[0]][:prompts]):
        script = main_script(row.prompt)
        answers = []
        for model in MODELS:
            mine: QuestionRow = inputs.rows[model][place]
            answers.append(
                {
                    "model": model,
                    "think": answer_view(mine.think, script, chat=model != "base"),
                    "no_think": answer_view(mine.no_think, script, chat=model != "base"),
                }
            )
        shown.append({"prompt": row.prompt, "gold": row.gold, "domain": row.domain, "answers": answers})
    return shown


def answer_view(samples: ModeSamples, script: str, *, chat: bool) -> dict[str, Any]:
    """The first sample of a question in its parts, and how many of all samples are right."""
    text = samples.text.replace(TURN_END, "").replace(END_OF_TEXT, "").strip()
    parts = split_response(text)
    thinking, answer = parts.thinking, parts.answer
    if thinking is None and text.startswith(THINK_OPEN):
        thinking, answer = text.removeprefix(THINK_OPEN).strip(), ""
    elif not chat:
        before, box, after = text.partition("\\boxed{")
        thinking, answer = before.strip(), box + after
    return {
        "correct": samples.correct[0] is True,
        "right": sum(flag is True for flag in samples.correct),
        "of": len(samples.correct),
        "tokens": samples.tokens[0],
        "finish": samples.finish[0],
        "thinking": highlight(thinking or "", script),
        "answer": highlight(answer, script),
    }
