"""RL on a reward model's score, methods `ppo` and `grpo_rm` of stage align, which can stop by itself.

The loop is that of stage grpo, the reward the term `learned`, the policy that it starts from is the reference. A policy
that is optimised against a proxy long enough finds where the proxy is wrong (Gao et al., arXiv 2210.10760), so that at
every look the policy's own answers to held-out problems are judged by more than what it is trained on: by the gold
score, or by a second reward model where no gold exists. Once that signal has been below its best for some looks in a
row, training ends; the weights kept are those of the best look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from posttrain import config
from posttrain.config_align_rl import EarlyStop, LearnedRl
from posttrain.engine.policy import Policy, frozen_copy
from posttrain.engine.rollout import RolloutEngine, make_engine
from posttrain.engine.scalar_head import load_reward_model
from posttrain.evals.intervals import Floats
from posttrain.loops.best import BestWeights, Looks, best_step, last_step
from posttrain.loops.gold import GOLD, look_at_scores
from posttrain.loops.learned import learned_scorer
from posttrain.loops.rl import run_rl
from posttrain.records import Problem
from posttrain.rewards.terms import Group
from posttrain.rewards.total import LEARNED, Scorer
from posttrain.system import System

PROXY, SECOND = "proxy", "second_proxy"
"""Names of the reward model trained on and of the other one, as measured."""
NO_SIGNAL = "none"


def align_by_reward(
    policy: Policy,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    section: LearnedRl,
    optimizer: config.Optimizer,
    grpo: config.Rl,
    folder: Path,
    engine: config.Engine,
    machine: System,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
) -> dict[str, Any]:
    """`run_align_rl` with a sampler of its own, on the reward model of `folder` and the second one `section` names."""
    other = section.second_reward_model
    reward_model = load_reward_model(folder, policy.tokenizer, precision=engine.precision)
    second = None if other is None else load_reward_model(Path(other), policy.tokenizer, precision=engine.precision)
    rollouts = make_engine(policy, engine, machine)
    summary = run_align_rl(
        policy,
        problems,
        heldout,
        section=section,
        optimizer=optimizer,
        grpo=grpo,
        reward_model=reward_model,
        second=second,
        rollouts=rollouts,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
    )
    rollouts.close()
    return summary


def run_align_rl(
    policy: Policy,
    problems: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    section: LearnedRl,
    optimizer: config.Optimizer,
    grpo: config.Rl,
    reward_model: PreTrainedModel,
    second: PreTrainedModel | None,
    rollouts: RolloutEngine,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
) -> dict[str, Any]:
    """Train `policy` in place on `problems`; the report has run_rl's summary, the step kept, and one sentence.

    `rollouts` must sample from `policy`'s weights, and does so again when this returns. `heldout`: what the looks ask.
    `second`: the reward model of `section.second_reward_model`. Continues from the last checkpoint in `checkpoints`.
    Raises ConfigError where the method and section grpo contradict each other.
    """
    numbers = rl_section(grpo, section, optimizer)
    reference = frozen_copy(policy.model)
    proxies = {PROXY: reward_model} | ({SECOND: second} if second else {})

    def look() -> dict[str, float]:
        found = look_at_scores(
            rollouts,
            policy,
            reference,
            heldout[: section.look_problems],
            proxies,
            samples=section.look_samples,
            generation=numbers.generation,
            seed=seed,
            micro_batch_tokens=engine.micro_batch_tokens,
        )
        return means(found)

    watch = watch_of(policy, section.stop, checkpoints / "best")
    summary = run_rl(
        policy,
        problems,
        section=numbers,
        rollouts=rollouts,
        engine=engine,
        seed=seed,
        log=log,
        checkpoints=checkpoints,
        measure=look,
        measure_at={0, numbers.steps} | set(range(0, numbers.steps, section.look_every)),
        scorers={LEARNED: scored_by(reward_model, policy, micro_batch_tokens=engine.micro_batch_tokens)},
        enough=watch,
    )
    kept = watch.restore(summary["heldout"], reference)
    if kept != summary["steps"]:
        rollouts.load_weights(policy.model, summary["steps"] + 1)
    sentence = in_one_sentence(summary["heldout"], signal=section.stop.signal, kept=kept)
    return {"kept_step": kept, "sentence": sentence, **summary}


def means(found: Mapping[str, Floats]) -> dict[str, float]:
    """A look's means over its questions, and of the scores their standard errors too, as `<score>_error`."""
    errors = {
        f"{name}_error": float(value_Q.std(ddof=1)) / math.sqrt(len(value_Q))
        for name, value_Q in found.items()
        if name in (PROXY, SECOND, GOLD)
    }
    return {name: float(value_Q.mean()) for name, value_Q in found.items()} | errors


def scored_by(reward_model: PreTrainedModel, policy: Policy, *, micro_batch_tokens: int) -> Scorer:
    """The term `learned`, on the policy's device: the trainer chooses it, after terms are made."""
    learned = learned_scorer(reward_model, micro_batch_tokens=micro_batch_tokens)

    def score(groups: Sequence[Group]) -> list[list[float]]:
        reward_model.to(policy.model.device)
        return learned(groups)

    return score


def rl_section(grpo: config.Rl, section: LearnedRl, optimizer: config.Optimizer) -> config.Rl:
    """Stage grpo's section with what `section` changes; raises ConfigError where the two contradict."""
    own = section.model_dump(mode="json", include={"objective", "steps", "epochs", "minibatches", "rewards"})
    changes = {
        "method": "rl",
        "sampling": "uniform",  # the other ways go by the verifier, which is not what is trained on here
        "curriculum_steps": 0,
        "keep": "last",  # which weights are kept is said by `stop`
        "optimizer": optimizer.model_dump(mode="json"),
    }
    return config.parse_section(
        config.Rl, grpo.model_dump(mode="json") | own | changes, f"align.method '{section.kind}'"
    )


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at one measurement from outside the reward: keeps the best weights, and says when it has turned down."""

    best: BestWeights | None
    """None: nothing is looked at."""
    checks: int

    def __call__(self, looks: Looks) -> bool:
        """Whether the last `checks` looks are all below the best; called after each look, on all ranks."""
        if self.best is None:
            return False
        best = self.best.see(looks)
        return sum(int(step) > best for step in looks) >= self.checks

    def restore(self, looks: Looks, start: PreTrainedModel) -> int:
        """Give the policy the weights of the best look and return its step; without a signal they stay the last."""
        return last_step(looks) if self.best is None else self.best.restore(looks, start)


def watch_of(policy: Policy, stop: EarlyStop, folder: Path) -> Watch:
    """What `stop` says; the best weights are kept in `folder`."""
    return Watch(None if stop.signal == NO_SIGNAL else BestWeights(policy, stop.signal, folder), stop.checks)


def in_one_sentence(looks: Looks, *, signal: str, kept: int) -> str:
    """Where the signal (without one, gold) was highest, and which weights were kept."""
    watched = GOLD if signal == NO_SIGNAL else signal
    best, last = best_step(looks, watched), last_step(looks)
    kl = looks[str(best)]["kl"]
    place = f"KL {kl:.2f} nats (sqrt {math.sqrt(max(kl, 0.0)):.2f})"
    if best == last:
        return f"{watched} was highest at the end, step {last}, at {place}: it has not turned down."
    change = looks[str(last)][watched] - looks[str(best)][watched]
    return (
        f"{watched} peaked after step {best} at {place} and was {change:+.3g} from there at step {last}, the last: the "
        f"weights after step {kept} are kept."
    )
