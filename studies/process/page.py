"""The result block of docs/process_rewards.md, written from reports/studies/process.json and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evals.readme import with_block
from posttrain.files import write_atomic

NOTHING = "No run is committed yet: `python -m studies.process` writes this block and `reports/studies/process.json`."

NAMES = {
    "random": "one sample",
    "majority": "majority",
    "weighted_prm_soft": "majority weighted by the PRM, soft labels",
    "weighted_prm_hard": "majority weighted by the PRM, hard labels",
    "weighted_orm": "majority weighted by the reward model",
    "weighted_checker": "majority weighted by the checker",
    "best_prm_soft": "best by the PRM, soft labels",
    "best_prm_hard": "best by the PRM, hard labels",
    "best_orm": "best by the reward model",
    "best_checker": "best by the exact checker",
    "oracle": "oracle: any sample right (pass@N)",
}
"""Arms in the order of the table."""


def write_page(page: Path, report: Mapping[str, Any]) -> None:
    """Replace the block between the markers."""
    write_atomic(page, with_block(page.read_text(encoding="utf-8"), results(report)))


def results(report: Mapping[str, Any]) -> str:
    """Tables and their reading; without a report, how to get one."""
    if not report:
        return NOTHING
    parts = [_steps(report), _rerank(report), _search(report), _reading(report)]
    return "\n\n".join(part for part in parts if part)


def _steps(report: Mapping[str, Any]) -> str:
    labels, steps = report["labels"], report["steps"]
    rows = [
        ("the labels themselves, soft", labels["auroc"]["soft"]),
        ("the labels themselves, hard", labels["auroc"]["hard"]),
        ("PRM, soft labels", steps["auroc"]["prm_soft"]),
        ("PRM, hard labels", steps["auroc"]["prm_hard"]),
    ]
    intro = (
        f"`{report['policy']}`: {labels['steps']} labelled steps of {labels['responses']} responses; {steps['steps']} "
        f"held-out steps, of which the exact checker finds {_percent(steps['right_share'])} % right."
    )
    return f"{intro}\n\n" + _table(
        ("right steps against wrong ones", "AUROC"), [(name, _interval(v, 1.0, 3)) for name, v in rows]
    )


def _rerank(report: Mapping[str, Any]) -> str:
    table = report["rerank"]
    sizes = sorted(next(iter(table.values())), key=int)
    rows = [
        (NAMES[arm], *(_interval(table[arm][size]["accuracy"], 100.0, 1) for size in sizes))
        for arm in NAMES
        if arm in table
    ]
    conditions = (
        f"{report['questions']} held-out questions, {_number(report['tokens'])} tokens per sample; accuracy in %, "
        "[95 % bootstrap interval over questions]."
    )
    return _table(("chosen from N samples", *(f"N = {size}" for size in sizes)), rows) + f"\n\n{conditions}"


def _search(report: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{'exact checker' if name == 'checker' else 'PRM'}, {size} samples",
            _interval(found["accuracy"], 100.0, 1),
            _interval(found["best_of_n"], 100.0, 1),
            _interval(found["over_best_of_n"], 100.0, 1),
            f"{_number(found['tokens'])} / {_number(found['tokens_best_of_n'])}",
        )
        for name, sizes in _searches(report)
        for size, found in sorted(sizes.items(), key=lambda item: int(item[0]))
    ]
    header = ("guide, budget", "search, %", "best of N, %", "difference", "tokens, search / best of N")
    return _table(header, rows) if rows else ""


def _searches(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By guide, the exact checker last: the report in the file has its keys in another order than the one just made."""
    return sorted(report["search"].items(), key=lambda item: item[0] == "checker")


def _reading(report: Mapping[str, Any]) -> str:
    """Sentences whose words follow from the numbers."""
    table = report["rerank"]
    least, most = (pick(table["majority"], key=int) for pick in (min, max))
    best = max(("prm_soft", "prm_hard"), key=lambda name: table[f"best_{name}"][most]["accuracy"]["value"])
    chosen, weighted, checker = (table[arm] for arm in (f"best_{best}", f"weighted_{best}", "best_checker"))
    sentences = [
        f"Reading: at N = {most}, against the majority vote, the best by the better PRM "
        f"({best.removeprefix('prm_')} labels) is {_against(chosen[most]['over_majority'])}, the majority weighted by "
        f"it {_against(weighted[most]['over_majority'])}, the best by the exact checker "
        f"{_against(checker[most]['over_majority'])}.",
        f"From N = {least} to N = {most} the mean score of what the PRM chooses goes from {chosen[least]['score']:.2f} "
        f"to {chosen[most]['score']:.2f}, its accuracy from {_percent(chosen[least]['accuracy']['value'])} % to "
        f"{_percent(chosen[most]['accuracy']['value'])} %.",
    ]
    for name, sizes in _searches(report):
        size = max(sizes, key=int)
        guide = "the exact checker" if name == "checker" else "the PRM"
        sentences.append(
            f"Against the best of {size} by the same score, at equal generated tokens, search guided by {guide} is "
            f"{_against(sizes[size]['over_best_of_n'])}."
        )
    return " ".join(sentences)


def _against(difference: Mapping[str, float]) -> str:
    points = f"{abs(100 * difference['value']):.1f} points"
    if difference["low"] > 0:
        return f"{points} above"
    if difference["high"] < 0:
        return f"{points} below"
    return "not told apart"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _interval(value: Mapping[str, float] | None, scale: float, digits: int) -> str:
    if value is None:
        return "-"
    return "{} [{}, {}]".format(*(f"{scale * value[name]:.{digits}f}" for name in ("value", "low", "high")))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(value: float) -> str:
    return f"{value:.0f}"
