"""Proxies from noisy labels, optimised by best of n and by RL, with gold measured beside them.

Two reward models are trained on pairs of two halves of the prompts. One is the proxy that is optimised, the other is
never optimised against; gold is the noiseless judge. What is reported of every curve are gains over the start on the
same questions, in standard deviations of the start's samples to one prompt, so that all scores share an axis.

Shapes: Q questions, K samples of a question, D points of a curve, R bootstrap draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from posttrain.config import Params, Rl
from posttrain.engine.policy import Policy, frozen_copy, load_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.evals.annotators import flip
from posttrain.evals.intervals import Floats, bootstrap_mean, resample
from posttrain.evals.overoptimization import best_of_n, best_of_n_kl, find_turn, fit_law, in_one_sentence
from posttrain.job import VOLATILE
from posttrain.loops.gold import GOLD, gold_scorer, look_at_scores, score_samples
from posttrain.loops.learned import learned_scorer
from posttrain.loops.pairs import make_pairs, pair_report, rule_judge
from posttrain.loops.reward_model import run_reward_model
from posttrain.loops.rl import run_rl
from posttrain.loops.sample import sample_policy
from posttrain.records import Problem
from posttrain.rewards.total import LEARNED
from posttrain.system import System
from studies.overoptimization.plan import ARMS, Study, arm_section, proxy_section

START = Path("models/fuse")
PROXY, SECOND, SEEN = "proxy", "second_proxy", "proxy_seen"
"""Scores: of the proxy on held-out prompts, of the other one, and of the proxy on prompts that RL trains on."""
UNIT = "sd"
SAVE_EVERY = 10**9
"""Steps between checkpoints of a proxy: it trains for less than a minute."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts share."""

    params: Params
    study: Study
    machine: System
    seed: int
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    checkpoints: Path
    log: Callable[[dict[str, float], int], None]
    note: Callable[[str], None]

    def start(self) -> Policy:
        """A fresh copy of the model that everything starts from."""
        return load_policy(START, precision=self.params.engine.precision)


def run(bench: Bench) -> dict[str, Any]:
    """The report."""
    numbers = bench.study.labels
    problems = random.Random(bench.seed).sample(list(bench.train), min(numbers.problems, len(bench.train)))
    halves = {PROXY: problems[: len(problems) // 2], SECOND: problems[len(problems) // 2 :]}
    proxies: dict[str, PreTrainedModel] = {}
    labels: dict[str, Any] = {}
    for number, (name, half) in enumerate(halves.items()):
        proxies[name], labels[name] = train_proxy(bench, name, half, seed=bench.seed + number)
    chosen, units = choose(bench, proxies)
    reinforced = {arm: reinforce(bench, arm, halves[PROXY], proxies, units) for arm in ARMS}
    return {
        "labels": labels,
        "units": units,
        "flip_rate": numbers.flip_rate,
        "best_of_n": {"samples": bench.study.best_of_n.samples, "curves": chosen},
        "rl": {"samples": bench.study.rl.look_samples, "curves": reinforced},
    }


def train_proxy(
    bench: Bench, name: str, problems: Sequence[Problem], *, seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A reward model on noisy pairs of the start's answers, and how good pairs and model are."""
    numbers, policy = bench.study.labels, bench.start()
    groups = sample_policy(
        policy,
        problems,
        mode="think",
        samples=numbers.samples,
        generation=bench.params.prefer.generation,
        seed=seed,
        engine=bench.params.engine,
        machine=bench.machine,
    )
    pairs = make_pairs(
        groups,
        judge=rule_judge("rule"),
        annotate=partial(flip, rate=numbers.flip_rate),
        per_problem=numbers.per_problem,
        heldout_share=numbers.heldout_share,
        seed=seed,
    )
    model, quality = run_reward_model(
        policy,
        pairs,
        section=proxy_section(bench.params.reward_model, bench.study.proxies),
        engine=bench.params.engine,
        seed=seed,
        log=logged(bench, name),
        checkpoints=bench.checkpoints / name,
        save_every=SAVE_EVERY,
    )
    bench.note(f"{name}: trained on {quality['train_pairs']} pairs of {len(problems)} prompts")
    return model.requires_grad_(False).eval(), {**pair_report(pairs, problems=len(problems)), "quality": quality}


def choose(bench: Bench, proxies: Mapping[str, PreTrainedModel]) -> tuple[dict[str, Any], dict[str, float]]:
    """Best of n by the proxy and, as the control, by gold; and the unit of every score."""
    numbers = bench.study.best_of_n
    generation = bench.params.grpo.generation
    pools = sample_policy(
        bench.start(),
        bench.heldout[: numbers.problems],
        mode="think",
        samples=numbers.samples,
        generation=generation,
        seed=bench.seed + 2,
        engine=bench.params.engine,
        machine=bench.machine,
    )
    scored = score_samples(
        pools, proxies, limit=generation.max_new_tokens, micro_batch_tokens=bench.params.engine.micro_batch_tokens
    )
    scores = {name: np.array(values_QK) for name, values_QK in scored.items()}
    units = {name: spread(name, values_QK) for name, values_QK in scores.items()}
    bench.note(f"best of n: {numbers.samples} samples of each of {len(pools)} held-out prompts")
    kl_QD = np.tile([best_of_n_kl(n) for n in numbers.at], (len(pools), 1))
    curves = {}
    for by in (PROXY, GOLD):
        gained = {
            name: best_of_n(scores[by], values_QK, at=numbers.at) / units[name] for name, values_QK in scores.items()
        }
        curves[by] = describe(bench, "best_of_n", kl_QD, gained, places=[{"n": n} for n in numbers.at])
    return curves, units


def spread(name: str, values_QK: Floats) -> float:
    """Standard deviation of the samples of one prompt, over all prompts; raises StageError where it is 0."""
    deviation = float(np.sqrt(values_QK.var(axis=1, ddof=1).mean()))
    if deviation == 0.0:
        raise StageError(f"{name}: gives all samples of a prompt the same score, wanted one that can be optimised")
    return deviation


def reinforce(
    bench: Bench,
    arm: str,
    problems: Sequence[Problem],
    proxies: Mapping[str, PreTrainedModel],
    units: Mapping[str, float],
) -> dict[str, Any]:
    """RL by one arm, on the prompts that the proxy was trained on."""
    by, term = (GOLD, GOLD) if arm == GOLD else (PROXY, LEARNED)
    section = arm_section(arm, bench.params.grpo, bench.study.rl, reward=term, unit=units[by])
    policy = bench.start()
    rollouts = make_engine(policy, bench.params.engine, bench.machine)
    looks: list[dict[str, Floats]] = []
    measure = looking(bench, policy, section, problems, proxies, rollouts, looks)
    measured_at = sorted({0, section.steps} | set(range(0, section.steps, bench.study.rl.look_every)))
    run_rl(
        policy,
        problems,
        section=section,
        rollouts=rollouts,
        engine=bench.params.engine,
        seed=bench.seed,
        log=logged(bench, f"rl-{arm}"),
        checkpoints=bench.checkpoints / f"rl-{arm}",
        measure=measure,
        measure_at=measured_at,
        scorers={
            LEARNED: learned_scorer(proxies[PROXY], micro_batch_tokens=bench.params.engine.micro_batch_tokens),
            GOLD: gold_scorer,
        },
    )
    rollouts.close()
    curves = {name: np.stack([look[name] for look in looks], axis=1) for name in looks[0]}
    kl_QD = curves.pop("kl")
    plain = {name: curves.pop(name).mean(0) for name in ("accuracy", "tokens")}
    gained = {name: value_QD / units[PROXY if name == SEEN else name] for name, value_QD in curves.items()}
    places = [
        {"step": step} | {name: float(value_D[number]) for name, value_D in plain.items()}
        for number, step in enumerate(measured_at)
    ]
    found = describe(bench, "rl", kl_QD, gained, places=places)
    bench.note(f"RL, {arm}: {found['sentence']}")
    return found


def looking(
    bench: Bench,
    policy: Policy,
    section: Rl,
    problems: Sequence[Problem],
    proxies: Mapping[str, PreTrainedModel],
    rollouts: Any,
    looks: list[dict[str, Floats]],
) -> Callable[[], dict[str, float]]:
    """A function that looks at the policy, adds what it sees on each question to `looks`, and returns the means."""
    numbers = bench.study.rl
    reference = frozen_copy(policy.model)

    def measure() -> dict[str, float]:
        def look(asked: Sequence[Problem], scorers: Mapping[str, PreTrainedModel]) -> dict[str, Floats]:
            return look_at_scores(
                rollouts,
                policy,
                reference,
                asked[: numbers.look_problems],
                scorers,
                samples=numbers.look_samples,
                generation=section.generation,
                seed=bench.seed + 3,
                micro_batch_tokens=bench.params.engine.micro_batch_tokens,
            )

        seen = look(problems, {PROXY: proxies[PROXY]})
        looks.append(look(bench.heldout, proxies) | {SEEN: seen[PROXY]})
        return {name: float(value_Q.mean()) for name, value_Q in looks[-1].items()}

    return measure


def describe(
    bench: Bench, law: str, kl_QD: Floats, scores: Mapping[str, Floats], *, places: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """A curve: every score's gain at every point with its interval, the law on gold, and where gold turned.

    `scores`: [Q, D] in their units, the first point that of the start. `seen` prompts are others than the rest, so
    every score is compared with itself.
    """
    gains = {name: value_QD - value_QD[:, :1] for name, value_QD in scores.items()}
    draws = {
        size: resample(size, draws=bench.study.bootstrap, seed=bench.seed) for size in set(map(len, gains.values()))
    }
    counts_RQ = draws[len(kl_QD)]
    kl_D = kl_QD.mean(0).tolist()
    points = [
        {
            **place,
            "kl": kl,
            "gain": {
                name: bootstrap_mean(gain_QD[:, d], draws[len(gain_QD)]).to_json() for name, gain_QD in gains.items()
            },
        }
        for d, (place, kl) in enumerate(zip(places, kl_D, strict=True))
    ]
    fit = fit_law(law, kl_QD, gains[GOLD], counts_RQ)
    turn = find_turn(gains[GOLD], counts_RQ)
    return {
        "questions": len(kl_QD),
        "points": points,
        "fit": None if fit is None else fit.to_json(),
        "turn": turn.to_json(),
        "sentence": in_one_sentence(turn, kl_D, unit=UNIT),
    }


def logged(bench: Bench, part: str) -> Callable[[dict[str, float], int], None]:
    """The log of one part of the study: every metric below its name; no times, which differ from run to run."""

    def log(metrics: dict[str, float], step: int) -> None:
        steady = {name: value for name, value in metrics.items() if not name.startswith(VOLATILE)}
        bench.log({f"{part}/{name}": value for name, value in steady.items()}, step)

    return log
