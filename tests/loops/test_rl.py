from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.errors import MismatchError, StageError, VerifierError
from posttrain.loops import rl, steps
from posttrain.loops.rl import run_rl
from posttrain.records import Problem
from posttrain.rl.process import StepReward
from tests.loops.toy import ENGINE, PROBLEMS, Journal, rl_section, same_weights, sampler_of, start_policy, weights_of

OBJECTIVES = sorted(path.stem for path in Path("objectives").glob("*.yaml") if path.stem != "rft")


def train(folder, section, *, problems=PROBLEMS, journal=None, policy=None, rollouts=None, measure_at=(), **engine):
    policy = policy or start_policy()
    journal = journal or Journal()
    counted = iter(range(1000))
    summary = run_rl(
        policy,
        problems,
        section=section,
        rollouts=rollouts or sampler_of(policy),
        engine=ENGINE.model_copy(update=engine),
        seed=5,
        log=journal,
        checkpoints=folder,
        measure=lambda: {"looks": float(next(counted))},
        measure_at=measure_at,
    )
    return policy, summary, journal


def test_the_reward_rises(tmp_path):
    _, summary, journal = train(tmp_path, rl_section(steps=20, save_every=100))
    accuracy = [metrics["reward/accuracy"] for _, metrics in journal.rows]
    assert 0.2 < accuracy[0] < 0.7
    assert sum(accuracy[-5:]) / 5 > 0.8
    assert summary["end"]["reward/accuracy"] > summary["start"]["reward/accuracy"]
    # The policy leaves the reference.
    assert summary["end"]["kl/k1_sequence"] > 0.1 > abs(journal.rows[0][1]["kl/k1_sequence"])


def test_every_step_says_what_happened(tmp_path):
    rewards = {"accuracy": {"weight": 1.0, "start": 0, "ramp": 0}, "length": {"weight": 0.5, "start": 1, "ramp": 1}}
    _, summary, journal = train(tmp_path, rl_section(steps=2, rewards=rewards), measure_at={0, 2})
    assert [step for step, _ in journal.rows] == [0, 1, 2]
    assert journal.rows[0][1] == {"eval/looks": 0.0}
    first, second = journal.rows[1][1], journal.rows[2][1]
    families = {
        "reward": ("accuracy", "accuracy_weight", "length", "length_weight", "total"),
        "train": ("loss", "grad_norm", "learning_rate", "clip_fraction", "entropy", "groups_with_signal"),
        "kl": ("k1_sequence", "k3_token"),
        "length": ("mean", "correct", "wrong"),
        "rollout": ("truncated", "unverified", "mismatch", "language_mixing"),
        "time": ("generate", "reward", "update", "sync"),
        "perf": ("tokens_per_second",),
    }
    wanted = {f"{family}/{name}" for family, names in families.items() for name in names}
    assert wanted <= set(first)
    assert (first["reward/length_weight"], second["reward/length_weight"]) == (0.0, 0.25)
    assert first["train/clip_fraction"] == 0.0
    assert first["rollout/mismatch"] < 1e-4
    assert abs(first["kl/k1_sequence"]) < 1e-3
    assert first["reward/total"] == pytest.approx(first["reward/accuracy"])
    assert second["eval/looks"] == 1.0
    assert summary["heldout"] == {"0": {"looks": 0.0}, "2": {"looks": 1.0}}


def test_the_sampler_sleeps_while_the_trainer_steps_and_has_the_new_weights_before_it_samples(tmp_path, monkeypatch):
    calls = []
    for name in ("generate", "pause", "resume", "load_weights"):
        real = getattr(TransformersEngine, name)

        def noted(self, *args, _name=name, _real=real, **options):
            calls.append(_name)
            return _real(self, *args, **options)

        monkeypatch.setattr(TransformersEngine, name, noted)
    made = rl.update
    monkeypatch.setattr(rl, "update", lambda *args, **options: (calls.append("update"), made(*args, **options))[1])
    _, _, journal = train(tmp_path, rl_section(steps=2))
    # A sync ends with the canary, which samples too.
    assert calls == ["generate", "pause", "update", "resume", "load_weights", "generate"] * 2
    assert [metrics["rollout/restarts"] for _, metrics in journal.rows] == [0.0, 0.0]


@pytest.mark.parametrize("changes", [{}, {"epochs": 2, "minibatches": 2, "sampling": "prioritised"}])
def test_interrupted_is_uninterrupted(tmp_path, changes):
    section = rl_section(steps=5, **changes)
    whole, summary, whole_journal = train(tmp_path / "whole", section, measure_at={0, 4})
    journal = Journal(stop_after=4)  # the look at step 0 and three steps; the last checkpoint is of step 2
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", section, journal=journal)
    resumed, resumed_summary, rest = train(tmp_path / "cut", section, measure_at={4})
    assert next(step for step, _ in rest.rows) in (3, 5)
    assert same_weights(weights_of(whole), weights_of(resumed))
    for part in ("start", "end"):
        assert summary[part] == resumed_summary[part]
    assert whole_journal.rows[-1][1]["train/loss"] == rest.rows[-1][1]["train/loss"]


def test_the_size_of_micro_batches_does_not_matter(tmp_path):
    results = []
    for number, tokens in enumerate((64, 4096)):
        _policy, _, journal = train(tmp_path / str(number), rl_section(steps=1), micro_batch_tokens=tokens)
        results.append(journal.rows[0][1])
    for name in ("train/loss", "train/grad_norm", "train/entropy", "rollout/mismatch", "kl/k1_sequence"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3, abs=1e-6), name


def test_several_steps_per_batch_start_from_ratio_one(tmp_path):
    """With old log-probabilities of their own the first of several steps equals the single on-policy step."""
    _, _, single = train(tmp_path / "a", rl_section(steps=1))
    _, _, several = train(tmp_path / "b", rl_section(steps=1, epochs=3))
    assert several.rows[0][1]["train/clip_fraction"] > 0
    assert single.rows[0][1]["reward/total"] == several.rows[0][1]["reward/total"]


def test_without_a_signal_nothing_is_trained(tmp_path):
    impossible = [Problem(p.id, p.prompt, "9", "exact", "toy", "toy") for p in PROBLEMS]
    policy = start_policy()
    before = weights_of(policy)
    _, _, journal = train(tmp_path, rl_section(steps=1), problems=impossible, policy=policy)
    assert same_weights(before, weights_of(policy))
    metrics = journal.rows[0][1]
    assert metrics["train/groups_with_signal"] == 0.0
    assert "train/loss" not in metrics and "kl/k1_sequence" in metrics and "length/correct" not in metrics


def right_is_a_good_step(tokenizer):
    """A scorer with one step per response: its answer."""
    return lambda samples: [[StepReward(sample.tokens - 1, sample.verdict.score)] for sample in samples]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_published_method_learns(tmp_path, name, monkeypatch):
    monkeypatch.setattr(steps, "checker_scorer", right_is_a_good_step)
    _, _, journal = train(tmp_path, rl_section(name, steps=10, save_every=100))
    accuracy = [metrics["reward/accuracy"] for _, metrics in journal.rows]
    assert sum(accuracy[-3:]) / 3 > accuracy[0] + 0.1


def test_dynamic_sampling_fills_the_batch(tmp_path):
    mixed = [*PROBLEMS[:2], *(Problem(f"i{i}", p.prompt, "9", "exact", "toy", "toy") for i, p in enumerate(PROBLEMS))]
    # Lengths alone would teach something, too.
    rewards = {"accuracy": {"weight": 1.0, "start": 0, "ramp": 0}}
    section = rl_section("dapo", steps=1, prompts_per_step=3, rewards=rewards)
    _, _, journal = train(tmp_path, section, problems=mixed)
    metrics = journal.rows[0][1]
    assert metrics["rollout/rounds"] > 1


def test_unverified_samples_stop_the_run(tmp_path):
    unparsable = [Problem(p.id, p.prompt, "", "math", "toy", "toy") for p in PROBLEMS]
    with pytest.raises(VerifierError, match=r"could not be verified, wanted at most 0.0%.*problem p"):
        train(tmp_path, rl_section(steps=1), problems=unparsable)


def test_too_few_problems_are_named(tmp_path):
    with pytest.raises(StageError, match="prompts per step: got 4"):
        train(tmp_path, rl_section(steps=1), problems=PROBLEMS[:3])


class Doubting:
    """The toy sampler, which reports every log-probability lower by `nats` than it is."""

    def __init__(self, policy, nats):
        self._engine, self._nats = sampler_of(policy), nats
        self.version, self.load_weights, self.close = 0, self._engine.load_weights, self._engine.close
        self.pause, self.resume, self.restarts = self._engine.pause, self._engine.resume, 0

    def generate(self, requests, **how):
        found = self._engine.generate(requests, **how)
        return [replace(r, logprobs=tuple(number - self._nats for number in r.logprobs)) for r in found]


def test_a_mismatch_above_the_budget_stops_the_run_before_the_step(tmp_path):
    """The trainer finds every token likelier by 0.5 nats: k3 = exp(0.5) - 1 - 0.5 = 0.14872 of each token."""
    policy = start_policy()
    before = weights_of(policy)
    with pytest.raises(
        MismatchError, match=r"k3 = 0\.149 nats.* \|difference\| 0\.5.*at most 0\.1487.*correction"
    ) as raised:
        train(tmp_path, rl_section(steps=1, mismatch_budget=0.1487), policy=policy, rollouts=Doubting(policy, 0.5))
    assert "effective samples 100.0%" in str(raised.value), "all weights are alike"
    assert same_weights(before, weights_of(policy))
    section = rl_section(steps=1, mismatch_budget=0.1488)
    _, _, journal = train(tmp_path, section, rollouts=Doubting(policy, 0.5))
    assert journal.rows[0][1]["rollout/mismatch_k3"] == pytest.approx(0.14872, abs=1e-5)
