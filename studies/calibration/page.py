"""The block of docs/calibration.md, written from reports/studies/calibration.json and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evals.readme import with_block
from posttrain.files import write_atomic
from posttrain.job import file_stem, report_path
from studies.calibration.figure import NAMES, in_order, measured

PAGE = Path("docs/calibration.md")
REPORT = report_path("studies/calibration")
COMMAND = "python -m studies.calibration"
NOTHING = f"Not run yet: `{COMMAND}`, after the chain as far as stage distill."
TRAINED = {"RL": ("sft", "grpo"), "RLHF": ("fuse", "align")}
"""What calibration is said to suffer from: the model before and the model after."""
HEADER = (
    "model", "sampled at", "accuracy, %", "too sure by, points", "ECE", "ECE, equal mass", "Brier", "NLL, nats",
    "AUROC", "scaled: T", "ECE before / after",
)  # fmt: skip


def write_page(report: Mapping[str, Any]) -> None:
    """Put the report's numbers into the page."""
    write_atomic(PAGE, with_block(PAGE.read_text(encoding="utf-8"), block(report)))


def block(report: Mapping[str, Any] | None) -> str:
    """Verdicts, figures and a table per source; without a report, how to get one."""
    if report is None:
        return NOTHING
    parts = [
        *verdicts(report),
        _picture("reliability", "Reliability of every model"),
        _picture("along-the-chain", "ECE along the chain"),
    ]
    for source, name in NAMES.items():
        parts += [f"**{name}**{_remark(report, source)}", _table(report, source)]
    parts.append(
        f"{report['questions']} held-out questions, {report['samples']} samples each at every temperature, "
        f"{report['bins']} bins; [95 % bootstrap interval over questions]. Too sure by: mean confidence minus "
        f"accuracy. Scaled: temperature fitted on one half of the questions, ECE of the other half. Written from "
        f"`{REPORT}` by `{COMMAND}`."
    )
    return "\n\n".join(part for part in parts if part)


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Whether calibration got worse after RL and after RLHF: a sentence for each temperature, by source.

    Only of models that were compared, one after the other.
    """
    models, sentences = in_order(report), []
    for what, (before, after) in TRAINED.items():
        for at, values in models.get(after, {}).items():
            parts = []
            for source, name in NAMES.items():
                gap = values[source] and values[source]["against_previous"]
                if gap and gap["model"] == before:
                    old, new = (models[model][at][source]["ece"]["value"] for model in (before, after))
                    change = f"change {_interval(gap, sign='+')}"
                    parts.append(f"by {name} it {_got(gap)} (ECE {old:.3f} to {new:.3f}, {change})")
            if parts:
                sentences.append(f"Calibration after {what} ({before} to {after}) at T = {at}: {'; '.join(parts)}.")
    return sentences


def _got(gap: Mapping[str, float]) -> str:
    if gap["low"] > 0:
        return "got worse"
    return "got better" if gap["high"] < 0 else "did not change measurably"


def _picture(name: str, words: str) -> str:
    return f"![{words}](../reports/figures/{file_stem('studies/calibration')}-{name}.svg)"


def _remark(report: Mapping[str, Any], source: str) -> str:
    """What a reader must know of a source before its numbers."""
    at = [values for model in in_order(report).values() for values in model.values()]
    if source == "verbalised":
        stated, asked = (sum(values[key] for values in at) for key in ("stated", "asked"))
        return f": a number is stated for {stated} of {asked} answers{'.' if stated else ': absent.'}"
    if source == "p_true":
        either = [v["true_or_false"] for v in at if v["true_or_false"] is not None]
        if not either:
            return ": nothing to ask about."
        return f": the replies True and False together have probability {min(either):.1e} to {max(either):.1e}."
    return "."


def _table(report: Mapping[str, Any], source: str) -> str:
    """Empty for a source of which no model has a confidence."""
    if source not in measured(report):
        return ""
    models = in_order(report)
    rows = [_row(name, at, models[name][at][source]) for at in models[report["order"][0]] for name in models]
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(name: str, at: str, values: Mapping[str, Any] | None) -> Sequence[str]:
    if values is None:
        return (name, f"T = {at}", *["absent"] * (len(HEADER) - 2))
    fixed = values["repair"]
    return (
        name,
        f"T = {at}",
        _interval(values["accuracy"], scale=100.0, digits=1),
        _interval(values["overconfidence"], scale=100.0, digits=1, sign="+"),
        _interval(values["ece"]),
        _interval(values["ece_equal_mass"]),
        _interval(values["brier"]),
        _interval(values["nll"]),
        "-" if values["auroc"] is None else _interval(values["auroc"]),
        "-" if fixed is None else f"{fixed['temperature']:.2f}",
        "-" if fixed is None else f"{fixed['ece']['before']:.3f} / {fixed['ece']['after']:.3f}",
    )


def _interval(value: Mapping[str, float], *, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
    middle, low, high = (f"{scale * value[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"
