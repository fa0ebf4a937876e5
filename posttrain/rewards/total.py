"""The reward of every sample: terms found by name, evaluated, checked and summed.

Three kinds of names are known: those of posttrain.rewards.terms.TERMS; `learned`, the score of a reward model that the
stage has loaded; and `module:function`, a user's own function `Group -> list[float]`, looked for from the project root.
Every term is evaluated whatever its weight, so that its mean can be watched before it starts to count.

Shapes: P prompts, G samples of a group.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from posttrain.config import ConfigError
from posttrain.errors import StageError
from posttrain.rewards.terms import TERMS, Group, Term

LEARNED = "learned"
"""Name of the term that is a reward model's score."""

Scorer = Callable[[Sequence[Group]], list[list[float]]]
"""G numbers for each of P groups: what every term is in the loop. A model scores many groups faster than one by one."""


def make_terms(names: Iterable[str], *, scorers: Mapping[str, Scorer], root: Path = Path()) -> dict[str, Scorer]:
    """The terms of `names`, ready to use; `scorers` are those with a state, which the stage has built.

    Raises ConfigError for a name that is unknown, or whose function or scorer is not there.
    """
    return {name: _find(name, scorers, root) for name in names}


def total_rewards(
    groups: Sequence[Group], weights: Mapping[str, float], terms: Mapping[str, Scorer]
) -> list[tuple[list[float], dict[str, list[float]]]]:
    """Per group (weighted sum, every term by name), each with G numbers; `weights` names some or all of `terms`."""
    values = {name: evaluate(name, terms[name], groups) for name in weights}
    rewarded = []
    for p, group in enumerate(groups):
        own = {name: rewards_PG[p] for name, rewards_PG in values.items()}
        totals_G = [sum(weights[name] * own[name][g] for name in weights) for g in range(len(group.samples))]
        rewarded.append((totals_G, own))
    return rewarded


def evaluate(name: str, scorer: Scorer, groups: Sequence[Group]) -> list[list[float]]:
    """The term's numbers; a crash, a wrong number of them or one that is not finite raises StageError.

    A reward that cannot be computed must not turn into a reward: nobody would notice.
    """
    try:
        rewards_PG = scorer(groups)
    # All of them: a term may be a user's own code, and whatever goes wrong in it has to be told with its name.
    except Exception as error:
        if len(groups) > 1:  # alone, so that the message names the problem
            return [evaluate(name, scorer, [group])[0] for group in groups]
        where = f"reward term '{name}', problem {groups[0].problem.id}"
        raise StageError(f"{where}: crashed: {type(error).__name__}: {error}") from error
    if len(rewards_PG) != len(groups):
        raise StageError(f"reward term '{name}': got rewards for {len(rewards_PG)} prompts, wanted {len(groups)}")
    return [_checked(name, group, rewards_G) for group, rewards_G in zip(groups, rewards_PG, strict=True)]


def _checked(name: str, group: Group, rewards_G: object) -> list[float]:
    where = f"reward term '{name}', problem {group.problem.id}"
    if not isinstance(rewards_G, list | tuple):
        raise StageError(f"{where}: got a {type(rewards_G).__name__}, wanted a list of numbers")
    if len(rewards_G) != len(group.samples):
        raise StageError(f"{where}: got {len(rewards_G)} rewards, wanted {len(group.samples)}")
    for number, reward in enumerate(rewards_G):
        if not isinstance(reward, int | float):
            raise StageError(f"{where}: got a {type(reward).__name__} for sample {number}, wanted a number")
        if not math.isfinite(reward):
            raise StageError(f"{where}: got {reward} for sample {number}, wanted a finite number")
    return [float(reward) for reward in rewards_G]


def _one_by_one(term: Term, groups: Sequence[Group]) -> list[list[float]]:
    return [term(group) for group in groups]


def _find(name: str, scorers: Mapping[str, Scorer], root: Path) -> Scorer:
    if name in scorers:
        return scorers[name]
    if name in TERMS:
        return partial(_one_by_one, TERMS[name])
    if name == LEARNED:
        raise ConfigError(
            f"rewards.{name}: this stage has no reward model, wanted a stage that comes after reward_model"
        )
    if ":" in name:
        return partial(_one_by_one, _users(name, root))
    known = ", ".join(sorted([*TERMS, LEARNED]))
    raise ConfigError(f"rewards: got '{name}', wanted one of {known}, or module:function")


def _users(name: str, root: Path) -> Term:
    """The function of `module:function`; the module may be a file or a package of the project."""
    module_name, _, function_name = name.partition(":")
    place = str(root.resolve())
    sys.path.insert(0, place)
    try:
        module = importlib.import_module(module_name)
    # All of them: importing runs the user's code.
    except Exception as error:
        raise ConfigError(
            f"rewards.{name}: module '{module_name}' cannot be imported: {type(error).__name__}: {error}; wanted: a "
            f"module that Python finds from the project root (mine/terms.py is mine.terms)"
        ) from error
    finally:
        sys.path.remove(place)
    term = getattr(module, function_name, None)
    if not callable(term):
        found = "no such name" if term is None else f"a {type(term).__name__}"
        raise ConfigError(f"rewards.{name}: got {found} in {module.__file__}, wanted a function Group -> list[float]")
    found_term: Term = term
    return found_term
