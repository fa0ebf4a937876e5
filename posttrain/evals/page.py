"""reports/index.html: one self-contained page from the small files that the stages left.

Every number comes from a file and every figure names its own; a missing key stops the page. No script, no network, no
date: equal inputs give equal bytes. What a model wrote is escaped like any other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain.chain import MODELS
from posttrain.chat.split import split_response
from posttrain.chat.template import END_OF_TEXT, THINK_OPEN, TURN_END
from posttrain.evals import figures
from posttrain.evals.figures import Line
from posttrain.evals.formats import highlight, interval, millions, number, percent, signed
from posttrain.evals.inputs import Inputs, Source
from posttrain.evals.intervals import wilson
from posttrain.evals.rows import ModeSamples, QuestionRow
from posttrain.evals.tiles import by_rft, looks_at_heldout, tiles
from posttrain.rewards.language import main_script

MAKING = {
    "base": "pre-trained on mixed habits",
    "sft": "long-CoT cold start",
    "grpo": "RL on verifiable rewards",
    "fuse": "two modes, one model",
    "align": "preferences",
    "distill": "smaller student",
}
RFT_MAKING = "fine-tuned on its own right answers"
LEARNED_RL_MAKING = "RL on the reward model"


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


DOMAIN_COLORS = ("muted", "orange", "purple", "blue", "green")

PANELS = (
    Panel("base", "Pre-training", "loss (nats per token)", (("train/loss", "loss", "blue"),)),
    Panel("sft", "Cold start", "loss (nats per token)", (("train/loss", "loss", "blue"),)),
    Panel(
        "grpo",
        "RL: rewards",
        "mean reward term",
        (
            ("reward/accuracy", "accuracy", "green"),
            ("reward/format", "format", "blue"),
            ("reward/language_consistency", "language", "purple"),
        ),
        percent=True,
    ),
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
    Panel(
        "reward_model",
        "Reward model",
        "pairs ordered right",
        (("reward/pair_accuracy", "accuracy", "green"),),
        percent=True,
    ),
    Panel(
        "align", "Preferences", "pairs ordered right", (("reward/pair_accuracy", "accuracy", "green"),), percent=True
    ),
    Panel(
        "distill",
        "On-policy distillation",
        "tokens the teacher would have chosen too",
        (("train/agreement", "agreement", "green"),),
        percent=True,
    ),
)

RFT_PANEL = Panel("grpo", "Rejection sampling", "loss (nats per token)", (("train/loss", "loss", "blue"),))
"""In the place of RL's panels where grpo.method is rft."""
LEARNED_RL_PANELS = (
    Panel("align", "RL on the reward model", "mean score", (("reward/learned", "reward model", "blue"),)),
    Panel("align", "RL on the reward model, as judged", "score by the judge", (("eval/gold", "judge", "green"),)),
)
"""In the place of the preference losses' panel where align.method is RL."""


def build_page(inputs: Inputs, *, prompts: int) -> str:
    """The whole page; `prompts` held-out questions are shown with all answers."""
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
        "models": [model_view(inputs, model) for model in MODELS],
        "tiles": tiles(inputs),
        "curate": inputs.stages["curate"].values,
        "drops": drop_view(inputs.stages["curate"]),
        "bars": bar_groups(inputs),
        "prefer": inputs.stages["prefer"].values,
        "questions": questions(inputs, prompts),
        "palette": figures.PALETTE,
        "panels": [panel_view(inputs, panel, place) for place, panel in enumerate(panels(inputs.stages))],
        "figures": draw(inputs),
    }
    return environment.get_template("report.html").render(view)


def by_learned_rl(align: Source) -> bool:
    """Whether the policy was trained on the reward model's score, and not on pairs."""
    return "rl" in align.values


def making(stages: Mapping[str, Source]) -> dict[str, str]:
    """What makes each model."""
    changed = {"grpo": RFT_MAKING} if by_rft(stages["grpo"]) else {}
    return MAKING | changed | ({"align": LEARNED_RL_MAKING} if by_learned_rl(stages["align"]) else {})


def panels(stages: Mapping[str, Source]) -> list[Panel]:
    """The training curves of the run, in the order of the chain."""
    others: dict[str, Sequence[Panel]] = {}
    if by_rft(stages["grpo"]):
        others["grpo"] = (RFT_PANEL,)
    if by_learned_rl(stages["align"]):
        others["align"] = LEARNED_RL_PANELS
    order = dict.fromkeys(panel.stage for panel in PANELS)
    return [
        panel for stage in order for panel in others.get(stage, [panel for panel in PANELS if panel.stage == stage])
    ]


def model_view(inputs: Inputs, model: str) -> dict[str, Any]:
    """One box of the chain and one row of the table."""
    source = inputs.evaluations[model]
    pair = source.need("paired_to_previous")
    return {
        "name": model,
        "making": making(inputs.stages)[model],
        "file": source.file,
        "size": source.need("parameters") / max(s.need("parameters") for s in inputs.evaluations.values()),
        "pair": pair,
        "best_k": max(source.need("think.pass_at_k"), key=int),
        **{
            key: source.need(key)
            for key in ("parameters", "questions", "samples", "think", "no_think", "mode_following")
        },
    }


def draw(inputs: Inputs) -> dict[str, Markup]:
    """The single figures, as SVG."""
    grade, grpo, models = inputs.stages["grade"], inputs.stages["grpo"], inputs.evaluations
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
            figures.reliability(named("think.reliability", "sft", "align"), ("orange", "blue")),
            "Accuracy against confidence",
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
    if not by_rft(grpo):
        curve = {
            n: inputs.curves["grpo"].need(n) for n in ("step", "reward/accuracy", "length/correct", "length/wrong")
        }
        start = grpo.need("length_reward_start")
        drawn["length"] = (
            figures.length_and_accuracy(looks_at_heldout(grpo), start=start, curve=curve),
            "Accuracy and tokens per answer over the steps of RL",
        )
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
