import pytest

from posttrain import config
from posttrain.engine.policy import Policy, build_micro
from posttrain.errors import ModelError
from posttrain.loops.distill import draw, run_distill
from tests.loops.toy import (
    ENGINE,
    MICRO,
    PROBLEMS,
    Journal,
    optimizer,
    same_weights,
    sampler_of,
    start_policy,
    weights_of,
)


def section(**changes) -> config.Distill:
    base = {
        "problems": 4, "samples": 1, "generation": {"temperature": 1.0, "max_new_tokens": 16}, "no_think_share": 0.5,
        "sft_optimizer": optimizer().model_dump(), "sft_epochs": 1.0, "batch_tokens": 100, "sequence_length": 100,
        "on_policy_optimizer": optimizer(0.005).model_dump(), "on_policy_steps": 6, "prompts_per_step": 4,
        "kl": "reverse",
        "look_problems": 1,
        "no_think_samples": 1,
    }  # fmt: skip
    return config.Distill.model_validate(base | changes, strict=False)


def student() -> Policy:
    tokenizer = start_policy().tokenizer
    return Policy(build_micro(MICRO, vocab_size=len(tokenizer), eos_id=2, pad_id=0, seed=9), tokenizer)


def train(folder, journal, *, policy=None, teacher=None, tokens=4096, **changes):
    policy = policy or student()
    summary = run_distill(
        policy,
        teacher or start_policy(),
        PROBLEMS,
        section=section(**changes),
        rollouts=sampler_of(policy),
        engine=ENGINE.model_copy(update={"micro_batch_tokens": tokens}),
        seed=1,
        log=journal,
        checkpoints=folder,
        save_every=2,
    )
    return policy, summary


@pytest.mark.parametrize(("kl", "steps"), [("reverse", 40), ("forward", 15)])
def test_the_student_comes_to_the_teacher(tmp_path, kl, steps):
    journal = Journal()
    teacher = start_policy()
    before = weights_of(teacher)
    _, summary = train(tmp_path, journal, teacher=teacher, kl=kl, on_policy_steps=steps)
    losses = [metrics["train/loss"] for _, metrics in journal.rows]
    assert losses[-1] < 0.7 * losses[0]
    assert summary["steps"] == steps
    assert same_weights(before, weights_of(teacher))
    assert {"length/mean", "rollout/truncated", "time/generate", "perf/tokens_per_second"} <= set(journal.rows[0][1])


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tmp_path):
    journal = Journal()
    train(tmp_path, journal, policy=start_policy(), on_policy_steps=1)
    assert journal.rows[0][1]["train/loss"] == pytest.approx(0.0, abs=1e-6)
    assert journal.rows[0][1]["train/agreement"] == 1.0


def test_interrupted_is_uninterrupted(tmp_path):
    whole, summary = train(tmp_path / "whole", Journal())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Journal(stop_after=3))
    resumed, resumed_summary = train(tmp_path / "cut", Journal())
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert summary == resumed_summary


def test_the_size_of_micro_batches_does_not_matter(tmp_path):
    small, large = Journal(), Journal()
    train(tmp_path / "a", small, tokens=50, on_policy_steps=1)
    train(tmp_path / "b", large, on_policy_steps=1)
    assert small.rows[0][1]["train/loss"] == pytest.approx(large.rows[0][1]["train/loss"], rel=1e-4)
    assert small.rows[0][1]["train/grad_norm"] == pytest.approx(large.rows[0][1]["train/grad_norm"], rel=1e-3)


def test_both_modes_are_asked_for():
    policy = student()
    requests = [request for i in range(20) for request in draw(policy, PROBLEMS, section(), seed=str(i))]
    flagged = ["/no_think" in policy.tokenizer.decode(list(request.prompt_ids)) for request in requests]
    assert 20 < sum(flagged) < 60
    assert draw(policy, PROBLEMS, section(), seed="x") == draw(policy, PROBLEMS, section(), seed="x")


def test_other_vocabularies_are_refused(tmp_path):
    teacher = start_policy()
    other = Policy(build_micro(MICRO, vocab_size=400, eos_id=2, pad_id=0, seed=0), teacher.tokenizer)
    with pytest.raises(ModelError, match="got vocabularies of 400"):
        train(tmp_path, Journal(), policy=other)
