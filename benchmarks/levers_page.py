"""What each lever is worth, where the seconds of a step go, and those of the chain: sections of docs/performance.md."""

from __future__ import annotations

from statistics import median

from benchmarks.overheads import rows
from benchmarks.tables import table
from posttrain.evals.inputs import Source

READING = """\
Each lever alone, with all others in place: the same work with it and without it, in turns, in one process (those of the
environment, which a process reads when it starts, in processes of their own); {pairs} pairs. Where nothing else is said
the work is the forward and backward pass of a GRPO update without the optimizer ({prompts} x {group}, prompts of
{prompt_tokens} tokens, responses of up to {response_tokens}). Predicted: the ratio of the operations executed, padding
included; a dash where a lever saves passes over memory or calls, not operations. Kept: what the forward pass of one
micro-batch leaves for the backward pass; of a reference, what is there between two readings."""

OVERHEADS = """\
Execution {execution} of profile {profile}, {seconds:,.0f} s in all, by its MLflow runs. Before a stage: gates, DVC
(what is stale, hashes of what was written), start of Python, imports, by as many processes as share the stage.
Optimizer steps: with sampling and verdicts where there are any. Else: data, looks at held-out problems, evaluation,
saving."""

OVERLAP = """\
Verdicts and rewards are {reward:.1f} s of the {steps:.0f} s in optimizer steps of `{stage}`, {share:.0f} %. To overlap
them with sampling could save no more, and on a CPU both want the same cores: it is left out."""


def levers_section(result: Source) -> str:
    """The table of levers and the profile."""
    levers = result.need("levers")
    numbers = {name: result.need(f"size.{name}") for name in ("prompts", "group", "prompt_tokens", "response_tokens")}
    lines: list[tuple[str, ...]] = [("lever", "without it", "predicted", "measured", "seconds with / without")]
    for lever in levers:
        ratio, cost, kept = lever["ratio"], lever.get("own_cost"), lever.get("kept")
        lines.append(
            (
                lever["name"],
                lever["instead"],
                "-" if lever["predicted"] is None else f"{lever['predicted']:.2f}",
                f"**{ratio['value']:.2f}** [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                f"{median(lever['seconds']):.3g} / {median(lever['seconds_without']):.3g}"
                + (f"; {cost:.0f} s once" if cost is not None else "")
                + ("; {:.0f} / {:.0f} MiB kept".format(*(size / 2**20 for size in kept)) if kept else ""),
            )
        )
    profile = sorted(result.need("profile").items(), key=lambda item: -item[1])
    whole = sum(seconds for _, seconds in profile)
    shares = [(kind, f"{seconds:.3g}", f"{100 * seconds / whole:.0f}") for kind, seconds in profile if seconds]
    return "\n\n".join(
        [
            f"### Levers, {result.need('model')}, {result.need('precision')}",
            READING.format(pairs=len(levers[0]["seconds"]), **numbers),
            table(lines),
            "Where the seconds of that pass go, profiled once:",
            table([("operators", "seconds", "%"), *shares]),
        ]
    )


def overheads_section(result: Source) -> str:
    """Seconds of `make run` by stage and cause."""
    numbers = {name: result.need(name) for name in ("execution", "profile", "seconds")}
    verdicts = [
        OVERLAP.format(
            stage=stage["stage"],
            reward=stage["parts"]["reward"],
            steps=stage["steps"],
            share=100 * stage["parts"]["reward"] / stage["steps"],
        )
        for stage in result.need("stages")
        if "reward" in stage["parts"]
    ]
    title = "### Where the seconds of `make run` go"
    return "\n\n".join([title, OVERHEADS.format(**numbers), table(rows(result)), *verdicts])
