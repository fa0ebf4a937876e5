"""The toys' tables: `python -m studies.toys` (about ten seconds)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.arguments import no_arguments
from posttrain.evals.overoptimization import best_of_n_kl
from posttrain.losses.reduce import AGGREGATES
from posttrain.rl.advantages import BASELINES, SCALES
from studies.toys import baseline, difficulty, length, overoptimization, trust_region, wrong_sign

METHODS = {"grpo": "group_std", "dr_grpo": "none"}
"""Both subtract the group's mean; this is what they divide by."""


Rows = list[list[str | float]]


def table(head: Sequence[str], rows: Rows) -> str:
    """Markdown; numbers to four digits, and 0 for what is only rounding."""
    cells = [[value if isinstance(value, str) else f"{round(value, 12):.4g}" for value in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def baselines() -> str:
    """Baseline. Variance of REINFORCE's estimator with three baselines; the mean reward is not always better than 0."""
    rows: Rows = [
        [f"p = {p}", *(baseline.moments(p, b)[1] for b in (0.0, p, baseline.best_baseline(p)))] for p in (0.1, 0.5, 0.9)
    ]
    return table(["", "none", "mean reward p", "best, 1 - p"], rows)


def difficulties() -> str:
    """Difficulty. Expected gradient over the true one, by success probability p: what dividing by the std does."""
    chosen = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    rows: Rows = []
    for size in (8, 64):
        for name, scale in METHODS.items():
            axes = {"baseline": BASELINES["group_mean"], "scale": SCALES[scale]}
            rows.append([f"{name}, G = {size}", *(difficulty.weight(p, size=size, **axes) for p in chosen)])
        rows.append([f"no signal, G = {size}", *(difficulty.chance_of_no_signal(p, size=size) for p in chosen)])
    rows.append(["1 / std", *map(difficulty.limit_weight, chosen)])
    return table(["", *(f"p = {p}" for p in chosen)], rows)


def wrong_signs() -> str:
    """Wrong sign. Probability q of the better action after ascent with the expected gradient from q = 0.5, G = 8."""
    rows: Rows = [["truth", wrong_sign.true_gradient(0.5), "", wrong_sign.mean_reward(0.5)]]
    for name, scale in METHODS.items():
        advantages_KG = wrong_sign.group_advantages(8, baseline=BASELINES["group_mean"], scale=SCALES[scale])
        q = wrong_sign.train(advantages_KG, lr=40.0, steps=400)
        rows.append([name, wrong_sign.expected_gradient(0.5, advantages_KG), q, wrong_sign.mean_reward(q)])
    return table(["", "gradient at q = 0.5", "q at the end", "mean reward at the end"], rows)


def lengths() -> str:
    """Length. Drift of the wrong answers' continue logit at mean length 10, G = 8; the truth is 0."""
    exact = {
        "sequence_mean": (1.0 - 1.0 / 8) * length.sequence_mean_drift(0.9),
        "token_mean": length.token_mean_drift(0.9, group=8, sequences=8),
        "constant": 0.0,
    }
    rows: Rows = []
    for name, value in exact.items():
        # Only token_mean depends on how many groups share a denominator: one.
        groups, per_batch = (4000, 1) if name == "token_mean" else (40000, 200)
        mean, error = length.sampled_drift(0.9, AGGREGATES[name], group=8, groups=groups, per_batch=per_batch, seed=0)
        rows.append([name, value, f"{mean:.5f} +- {error:.5f}"])
    for sequences in (64, 512):
        rows.append(
            [f"token_mean, {sequences} sequences", length.token_mean_drift(0.9, group=8, sequences=sequences), ""]
        )
    return table(["", "exact", "sampled"], rows)


def length_flow() -> str:
    """Length over training, sequence_mean, infinite group, learning rate 1: mean tokens of wrong and right answers."""
    return table(
        ["steps", "wrong", "right"], [[str(n), *length.flow(0.9, lr=1.0, steps=n)] for n in (0, 50, 100, 200, 400)]
    )


def trust_regions() -> str:
    """Trust region. TRPO at KL 0.01 per update, and gradient descent on the clipped loss at three learning rates."""
    paths = {"trpo": trust_region.follow_trpo(updates=40)}
    for lr in (0.3, 3.0, 30.0):
        paths[f"clipped, lr {lr:g}"] = trust_region.follow_clipped(lr=lr, updates=40)
    rows: Rows = [[name, *(path.returns[n] for n in (0, 10, 20, 40)), max(path.kls)] for name, path in paths.items()]
    return table(["mean reward after", "0", "10", "20", "40 updates", "largest KL"], rows)


def best_of_many() -> str:
    """Overoptimization. Best of n by a proxy that overvalues one property: the proxy only rises, gold turns down."""
    sizes = [4**power for power in range(8)]
    rows: Rows = [
        ["KL, nats", *map(best_of_n_kl, sizes)],
        ["proxy", *(overoptimization.best_of_n(n)[0] for n in sizes)],
        ["gold", *(overoptimization.best_of_n(n)[1] for n in sizes)],
    ]
    return table(["n", *map(str, sizes)], rows)


TABLES: Sequence[Callable[[], str]] = (
    baselines, difficulties, wrong_signs, lengths, length_flow, trust_regions, best_of_many
)  # fmt: skip

if __name__ == "__main__":
    no_arguments(__doc__)
    for toy in TABLES:
        print(f"{toy.__doc__}\n\n{toy()}\n")
