"""What single axes do to a run: value network, references and optimizers that start anew, truncation, evidence."""

import itertools
import json
from functools import partial

import pytest
import torch

from posttrain.chat.split import split_response
from posttrain.config import ConfigError
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.errors import ModelError, NonFiniteError, StageError
from posttrain.loops import rl_state
from posttrain.loops import steps as step_scorers
from posttrain.loops.credit import Credit
from posttrain.loops.process_reward import prm_scorer
from posttrain.loops.recipe import choose_recipe
from posttrain.loops.rl import count
from posttrain.loops.rl_batch import Batch
from posttrain.loops.rl_step import Counts
from posttrain.loops.sample import Sample
from posttrain.losses.reduce import Denominators
from posttrain.records import Verdict
from posttrain.rl.process import StepReward
from tests.loops.test_rl import train
from tests.loops.test_rl_step import trajectories
from tests.loops.toy import ENGINE, PROBLEMS, Journal, objective, rl_section, same_weights, start_policy, weights_of

WRONG = Verdict(0.0, "wrong")
ADAPTIVE = {"kind": "adaptive", "target": 0.5, "horizon": 64}
KL = {"kind": "in_reward", "estimator": "k1", "coefficient": 0.1, "controller": ADAPTIVE, "reset_reference": 2}
IN_LOSS = KL | {"kind": "in_loss", "estimator": "k3_corrected"}
VALUE = {
    "kind": "value",
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "lr_scale": 2.0,
    "warmup_steps": 1,
    "reward_model": None,
}


def axes(name: str, **changes) -> dict:
    return objective(name)["objective"] | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "ppo", "objective": axes("ppo", kl=KL, baseline=VALUE), "epochs": 1, "minibatches": 2},
        {"name": "grpo", "objective": axes("grpo", kl=IN_LOSS)},
        {"name": "kimi_k15", "minibatches": 2},
    ],
    ids=["value, adaptive, moving reference", "reference in the loss", "optimizer anew"],
)
def test_interrupted_is_uninterrupted(tmp_path, changes):
    """Value network, reference, KL coefficient and optimizer are all in the checkpoint."""
    section = rl_section(steps=4, save_every=2, **changes)
    whole, summary, whole_journal = train(tmp_path / "whole", section)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", section, journal=Journal(stop_after=3))
    resumed, resumed_summary, rest = train(tmp_path / "cut", section)
    assert [step for step, _ in rest.rows] == [3, 4]
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert summary == resumed_summary
    steady = {name for name in rest.rows[-1][1] if not name.startswith(("time/", "perf/"))}
    assert {name: whole_journal.rows[-1][1][name] for name in steady} == {n: rest.rows[-1][1][n] for n in steady}


def test_the_reference_becomes_the_policy_every_so_many_steps(tmp_path):
    """At the step after a reset the policy has no distance to its reference."""
    section = rl_section("grpo", steps=5, objective=axes("grpo", kl=IN_LOSS | {"controller": "fixed"}))
    _, _, journal = train(tmp_path, section)
    distance = [abs(metrics["kl/k1_sequence"]) for _, metrics in journal.rows]
    assert max(distance[0], distance[2], distance[4]) < 1e-3 < min(distance[1], distance[3])


def test_the_coefficient_follows_the_kl(tmp_path):
    """32 samples of a horizon of 64: up or down by at most a tenth per step, by how far the KL is from its target."""
    section = rl_section(
        "ppo", steps=3, epochs=1, objective=axes("ppo", baseline=VALUE, kl=KL | {"reset_reference": 0})
    )
    _, _, journal = train(tmp_path, section)
    rows = [metrics for _, metrics in journal.rows]
    assert rows[0]["kl/coefficient"] == 0.1
    for now, following in itertools.pairwise(rows):
        error = min(max(now["kl/k1_sequence"] / 0.5 - 1.0, -0.2), 0.2)
        assert following["kl/coefficient"] == pytest.approx(now["kl/coefficient"] * (1.0 + error * 32 / 64))


def test_the_value_network_warms_up_alone(tmp_path):
    policy = start_policy()
    before = weights_of(policy)
    section = rl_section("ppo", steps=3, save_every=100, epochs=1, objective=axes("ppo", baseline=VALUE))
    looks = []

    class Watch(Journal):
        def __call__(self, metrics, step):
            super().__call__(metrics, step)
            looks.append(same_weights(before, weights_of(policy)))

    _, _, journal = train(tmp_path, section, policy=policy, journal=Watch())
    assert looks == [True, False, False]
    first, second = journal.rows[0][1], journal.rows[1][1]
    assert "train/loss" not in first and first["train/value_loss"] > 0
    assert second["train/ratio_first"] == pytest.approx(1.0, abs=1e-5)
    assert first["train/explained_variance"] < 0.5


def test_the_value_network_learns_what_to_expect(tmp_path):
    """Trained alone, its predictions come to explain the returns."""
    value = VALUE | {"warmup_steps": 7, "lr_scale": 5.0}
    section = rl_section("ppo", steps=8, save_every=100, epochs=4, objective=axes("ppo", baseline=value))
    _, _, journal = train(tmp_path, section)
    losses = [metrics["train/value_loss"] for _, metrics in journal.rows]
    explained = [metrics["train/explained_variance"] for _, metrics in journal.rows]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert explained[-1] > explained[0]


def test_the_value_network_may_start_as_a_reward_model(tmp_path):
    policy = start_policy()
    model = with_scalar_head(policy.model, seed=9)
    save_policy(Policy(model, policy.tokenizer), tmp_path / "judge")
    value = VALUE | {"reward_model": str(tmp_path / "judge"), "warmup_steps": 0}
    section = rl_section("ppo", steps=2, objective=axes("ppo", baseline=value))
    recipe = choose_recipe(section.objective, group_size=section.group_size)
    learner = rl_state.Learner(policy, recipe, section, engine=ENGINE, seed=5)
    assert same_weights(model.state_dict(), learner.critic.model.state_dict())
    _, _, journal = train(tmp_path / "run", section)
    assert all(metrics["train/value_grad_norm"] > 0 for _, metrics in journal.rows)
    absent = rl_section("ppo", steps=2, objective=axes("ppo", baseline=value | {"reward_model": "absent"}))
    with pytest.raises(ModelError, match="absent: cannot be loaded as a reward model"):
        train(tmp_path / "absent", absent)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_first_minibatch_starts_at_ratio_one(tmp_path, epochs):
    _, _, journal = train(tmp_path, rl_section(steps=1, epochs=epochs))
    metrics = journal.rows[0][1]
    assert metrics["train/ratio_first"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["train/clip_low"] + metrics["train/clip_high"] == pytest.approx(metrics["train/clip_fraction"])
    assert metrics["rollout/effective_samples"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["rollout/mismatch"] <= metrics["rollout/mismatch_max"] < 1e-3
    moved = metrics["kl/update_k2"]
    assert moved > 0 if epochs > 1 else moved == 0.0


SCHEDULE = {"weight": 1.0, "start": 0, "ramp": 0}
SHORT = {"generation": {"temperature": 1.0, "max_new_tokens": 2}}


@pytest.mark.parametrize(("truncated", "trains"), [("mask", False), ("keep", True)])
def test_masked_responses_train_nothing(tmp_path, truncated, trains):
    """Where the limit cuts every response, and each is punished for it, `keep` trains on all and `mask` on none."""
    policy = start_policy()
    before = weights_of(policy)
    changed = axes("dr_grpo", baseline="none", truncated=truncated)
    section = rl_section(steps=1, objective=changed, rewards={"overlong": SCHEDULE}, **SHORT)
    _, _, journal = train(tmp_path, section, policy=policy)
    assert journal.rows[0][1]["rollout/truncated"] == 1.0
    assert same_weights(before, weights_of(policy)) is not trains
    assert ("train/loss" in journal.rows[0][1]) is trains


def test_masked_responses_are_in_no_denominator():
    """Of responses with 3, 7 and 1 tokens the second is masked."""
    problem, items = PROBLEMS[0], trajectories()[:3]
    samples = [Sample(problem, "think", t.rollout, "", split_response("", "think"), WRONG, False) for t in items]
    batch = Batch([samples], [[Credit(t.advantages) for t in items]], [[True, False, True]], {}, {})
    section = rl_section()
    counts = count(batch, [0], [items[0], items[2]], section)
    assert counts == Counts(Denominators(sequences=2, tokens=4, max_tokens=24), trained_tokens=4)


@pytest.mark.parametrize(
    ("truncated", "total"), [({"kind": "penalty", "penalty": 2.0}, -2.0), ({"kind": "replace", "reward": -5.0}, -5.0)]
)
def test_responses_without_an_end_are_paid_less(tmp_path, truncated, total):
    changed = axes("dr_grpo", truncated=truncated)
    _, _, journal = train(tmp_path, rl_section(steps=1, objective=changed, **SHORT))
    assert journal.rows[0][1]["reward/total"] == total


def test_the_optimizer_starts_anew(tmp_path, monkeypatch):
    """Kimi's: at each batch; the moments are then those of one batch alone."""
    counts = []
    begin = rl_state.Learner.begin

    def watched(self, step):
        begin(self, step)
        counts.append(len(self.trainer._optimizer.state))

    monkeypatch.setattr(rl_state.Learner, "begin", watched)
    train(tmp_path / "a", rl_section("kimi_k15", steps=2))
    assert counts == [0, 0]
    kept = axes("kimi_k15", surrogate={"kind": "squared_log_ratio", "tau": 0.1, "reset_optimizer": False})
    train(tmp_path / "b", rl_section("kimi_k15", steps=2, objective=kept))
    assert counts[2] == 0 < counts[3]


def test_a_loss_that_is_no_number_stops_before_the_step_and_shows_the_response(tmp_path, monkeypatch):
    monkeypatch.setattr(step_scorers, "checker_scorer", lambda tokenizer: huge_steps)
    policy = start_policy()
    before = weights_of(policy)
    section = rl_section("process_grpo", steps=1, objective=axes("process_grpo", scale="none", kl="none"))
    with pytest.raises(NonFiniteError, match=r"weights are unchanged.*problem p0: .*nonfinite-0\.jsonl") as stopped:
        train(tmp_path, section, policy=policy)
    assert same_weights(before, weights_of(policy))
    path = tmp_path / "nonfinite-0.jsonl"
    assert str(path) in str(stopped.value)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"problem_id", "text", "prompt_ids", "response_ids", "advantages", "sampled", "loss", "gradient"} <= set(
        rows[0]
    )
    assert all("boxed" in row["text"] and len(row["advantages"]) == len(row["response_ids"]) for row in rows)
    assert all(not torch.tensor(row["advantages"]).float().isfinite().all() for row in rows)
    # The other groups are not at fault.
    assert [row["problem_id"] for row in rows] == ["p0"] * 8


def huge_steps(samples):
    """Rewards of p0's group that are finite in float64, and whose advantages are not in float32."""
    huge = samples[0].problem.id == "p0"
    return [[StepReward(0, 1e300 if huge and number == 0 else 0.0)] for number, _ in enumerate(samples)]


def by_prm(folder, **changes):
    credit = {"kind": "process", "steps": {"kind": "prm", "path": str(folder)}, "outcome": 0.0}
    return rl_section("process_grpo", steps=2, objective=axes("process_grpo", credit=credit), **changes)


def test_a_saved_process_reward_model_scores_the_steps(tmp_path, monkeypatch):
    """As what it is in memory does; another model gives other weights."""
    policy = start_policy()
    models = [with_scalar_head(policy.model, seed=seed) for seed in (3, 4)]
    trained = []
    for number, model in enumerate(models):
        save_policy(Policy(model, policy.tokenizer), tmp_path / f"prm{number}")
        after, _, journal = train(tmp_path / f"by{number}", by_prm(tmp_path / f"prm{number}"))
        assert len(journal.rows) == 2 and all(m["train/grad_norm"] > 0 for _, m in journal.rows)
        trained.append(weights_of(after))
    in_place = partial(prm_scorer, models[0].eval(), micro_batch_tokens=ENGINE.micro_batch_tokens)
    monkeypatch.setattr(step_scorers, "checker_scorer", in_place)
    in_memory, _, _ = train(tmp_path / "memory", rl_section("process_grpo", steps=2))
    assert same_weights(trained[0], weights_of(in_memory)) and not same_weights(*trained)


def test_a_process_reward_model_that_is_not_there_is_named_before_anything_is_trained(tmp_path):
    policy = start_policy()
    with pytest.raises(ConfigError, match=r"objective.credit.steps.path: .*absent: .* no such folder; wanted: a proc"):
        train(tmp_path / "run", by_prm(tmp_path / "absent"), policy=policy)
    save_policy(policy, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"objective.credit.steps.path: .*other: no weights for score.weight; wanted"):
        train(tmp_path / "run", by_prm(tmp_path / "other"), policy=policy)
    assert same_weights(weights_of(policy), weights_of(start_policy()))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (lambda samples: [], "got steps of 0 responses, wanted of 8"),
        (lambda samples: [[StepReward(99, 1.0)]] * len(samples), "problem p.: step 0 ends at 99, wanted 0 to"),
        (lambda samples: [[StepReward(0, float("nan"))]] * len(samples), "problem p.: step 0 has reward nan"),
    ],
)
def test_steps_that_make_no_sense_stop_the_run(tmp_path, monkeypatch, steps, said):
    monkeypatch.setattr(step_scorers, "checker_scorer", lambda tokenizer: steps)
    with pytest.raises(StageError, match=f"step scorer 'checker'.*{said}"):
        train(tmp_path, rl_section("process_grpo", steps=1))
