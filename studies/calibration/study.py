"""Calibration of every model on the same questions, against the model before it, and after a repair.

Shapes: Q questions, K samples, R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import Params
from posttrain.engine.policy import load_policy
from posttrain.engine.rollout import make_engine
from posttrain.errors import StageError
from posttrain.evals.calibration import Forecast
from posttrain.evals.confidence import ece_difference, fit_half, measure, repair
from posttrain.evals.intervals import Floats, resample
from posttrain.records import Problem
from posttrain.system import System
from studies.calibration.ask import SOURCES, Answer, Asker, forecasts
from studies.calibration.settings import Settings

EXACT = 1e-6
"""What fp32 probabilities cannot be told apart from 0 and 1 by."""
STATED = 0.005
"""Half of the hundredth in which people, and models, state a probability."""


def run(
    params: Params,
    machine: System,
    settings: Settings,
    problems: Sequence[Problem],
    *,
    seed: int,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """The report: for each model and temperature the measures of each source."""
    counts_RQ = resample(len(problems), draws=settings.bootstrap, seed=seed)
    models: dict[str, Any] = {}
    previous: tuple[str, Mapping[float, Mapping[str, list[Forecast]]]] | None = None
    for name in settings.models:
        answers = _answers(name, params, machine, settings, problems, seed=seed)
        found = {t: forecasts(rows, question_ids=[p.id for p in problems], seed=seed) for t, rows in answers.items()}
        if not all(rows["token"] for rows in found.values()):
            raise StageError(f"models/{name}: none of its answers could be verified, wanted at least one")
        models[name] = {
            f"{t:g}": {
                **counts(answers[t]),
                **{source: _source(found[t], source, t, previous, settings, counts_RQ, seed) for source in SOURCES},
            }
            for t in found
        }
        previous = (name, found)
        token = models[name]["1"]["token"]
        note(f"{name}: accuracy {token['accuracy']['value']:.3f}, ECE by token probability {token['ece']['value']:.3f}")
    return {
        "questions": len(problems),
        "samples": settings.samples,
        "temperatures": list(settings.temperatures),
        "bins": settings.bins,
        "order": list(settings.models),
        "models": models,
    }


def _answers(
    name: str, params: Params, machine: System, settings: Settings, problems: Sequence[Problem], *, seed: int
) -> dict[float, list[list[Answer | None]]]:
    policy = load_policy(Path("models") / name, precision=params.engine.precision)
    rollouts = make_engine(policy, params.engine, machine)
    limit = params.evaluate.generation.max_new_tokens
    try:
        asker = Asker(policy, rollouts, settings, name == "base", limit, params.engine.micro_batch_tokens, seed)
        return asker.answers(problems)
    finally:
        rollouts.close()


def counts(answers_QK: Sequence[Sequence[Answer | None]]) -> dict[str, Any]:
    """What the measures rest on; `asked` and `stated` count samples, `true_or_false` is None where nobody was asked."""
    flat = [answer for row in answers_QK for answer in row]
    opinions = [answer.opinion for answer in flat if answer is not None]
    return {
        "no_answer": (len(flat) - len(opinions)) / len(flat),
        "unverified": sum(opinion.correct is None for opinion in opinions) / len(flat),
        "asked": len(opinions),
        "stated": sum(opinion.stated is not None for opinion in opinions),
        "true_or_false": sum(opinion.either for opinion in opinions) / len(opinions) if opinions else None,
    }


def floor_of(source: str, *, samples: int) -> float:
    """Half of the smallest difference from certainty that a source can express."""
    votes = samples // 2
    return {"token": EXACT, "consistency": 0.5 / votes, "verbalised": STATED, "p_true": EXACT}[source]


def _source(
    found: Mapping[str, list[Forecast]],
    source: str,
    temperature: float,
    previous: tuple[str, Mapping[float, Mapping[str, list[Forecast]]]] | None,
    settings: Settings,
    counts_RQ: Floats,
    seed: int,
) -> dict[str, Any] | None:
    """Measures, repair, and the difference to the model before; None without a forecast."""
    now = found[source]
    if not now:
        return None
    bins, floor = settings.bins, floor_of(source, samples=settings.samples)
    fitted_on = fit_half(counts_RQ.shape[1], seed=seed)
    before = previous[1][temperature][source] if previous else []
    against = None
    if previous and before:
        gap = ece_difference(now, before, counts_RQ, bins=bins)
        against = {"model": previous[0], **gap.to_json()}
    return {
        **measure(now, counts_RQ, bins=bins, floor=floor, seed=seed),
        "repair": repair(now, counts_RQ, fitted_on=fitted_on, bins=bins, floor=floor),
        "against_previous": against,
    }
