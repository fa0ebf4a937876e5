"""Supervised training: the plan, the loss, and resuming."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import Engine, Optimizer
from posttrain.engine.policy import Policy
from posttrain.loops.sft import Example, make_loss, packed_parts, plan_steps, run_sft
from posttrain.losses.sft import sft_loss
from posttrain.records import DataError
from tests.engine.conftest import micro_model, micro_tokenizer
from tests.plain import pad, sequence_logprobs

ENGINE = Engine(
    precision="fp32", zero_stage=0, micro_batch_tokens=4096,
    rollout="transformers", rollout_batch=8, canary_tolerance=1e-3,
)  # fmt: skip
OPTIMIZER = Optimizer(
    kind="adamw",
    lr=3e-3,
    schedule="cosine",
    warmup=0.1,
    final_lr_ratio=0.1,
    weight_decay=0.0,
    betas=(0.9, 0.95),
    grad_clip=1.0,
)


def examples(count: int = 40) -> list[Example]:
    """Prompts of random tokens with the answer `first token + 1` and an end, of which the answer is trained."""
    rng = random.Random(0)
    made: list[Example] = []
    for _ in range(count):
        prompt = [rng.randrange(3, 60) for _ in range(rng.randint(2, 9))]
        made.append(([*prompt, prompt[0] + 1, 2], [0] * len(prompt) + [1, 1]))
    return made


def train(
    policy: Policy, folder: Path, *, save_every: int = 1000, **changes: Any
) -> tuple[dict[str, float], list[float]]:
    logged: list[float] = []
    arguments: dict[str, Any] = {
        "examples": examples(), "optimizer": OPTIMIZER, "epochs": 2.0, "batch_tokens": 64, "sequence_length": 32,
        "engine": ENGINE, "seed": 3, "log": lambda metrics, step: logged.append(metrics["train/loss"]),
    }  # fmt: skip
    summary = run_sft(policy, **(arguments | changes), checkpoints=folder, save_every=save_every)
    return summary, logged


def policy() -> Policy:
    return Policy(micro_model(scale=1.0), micro_tokenizer())


def test_loss_is_the_mean_over_the_trained_tokens_of_the_batch() -> None:
    # Two parts of a batch with three trained tokens: (0.5 + 1.5) / 3 + 1 / 3 = 1.
    parts = [torch.tensor([-0.5, -1.5]), torch.tensor([-1.0])]
    assert sum(float(sft_loss(part, tokens=3)) for part in parts) == pytest.approx(1.0)


def test_packed_loss_is_that_of_the_examples_one_by_one() -> None:
    model = micro_model()
    chosen = examples(12)
    trained = sum(sum(mask) for _, mask in chosen)
    with torch.no_grad():
        wanted = 0.0
        for ids, mask in chosen:
            ids_BT, _ = pad([ids])
            wanted -= float(sequence_logprobs(model, ids_BT, torch.tensor([mask]), temperature=1.0).sum()) / trained
        for tokens in (11, 40, 4096):
            parts = packed_parts(chosen, tokens=tokens)
            loss = sum(float(make_loss(tokens=trained)(model, part)[0]) for part in parts)
            assert loss == pytest.approx(wanted, rel=1e-5)


def test_plan_takes_every_example_once_per_epoch_in_equal_steps() -> None:
    lengths = [random.Random(i).randint(5, 20) for i in range(100)]
    plan = plan_steps(lengths, epochs=3.0, batch_tokens=200, seed=0)
    assert len(plan) == round(3 * sum(lengths) / 200)
    counts = [sum(step.count(index) for step in plan) for index in range(100)]
    assert counts == [3] * 100
    sizes = [sum(lengths[index] for index in step) for step in plan]
    assert max(sizes) - min(sizes) <= 2 * 20
    assert plan == plan_steps(lengths, epochs=3.0, batch_tokens=200, seed=0)
    assert plan != plan_steps(lengths, epochs=3.0, batch_tokens=200, seed=1)


def test_a_small_set_is_one_step_and_not_repeated() -> None:
    assert sorted(plan_steps([5, 5], epochs=1.0, batch_tokens=1000, seed=0)[0]) == [0, 1]


def test_part_of_an_epoch() -> None:
    plan = plan_steps([10] * 100, epochs=0.5, batch_tokens=100, seed=0)
    assert [len(step) for step in plan] == [10] * 5


def test_training_learns_and_reports(tmp_path: Path) -> None:
    trained = policy()
    summary, logged = train(trained, tmp_path, epochs=8.0, optimizer=OPTIMIZER.model_copy(update={"lr": 1e-2}))
    assert summary["loss_start"] == pytest.approx(sum(logged[:10]) / 10)
    assert summary["loss_end"] == pytest.approx(sum(logged[-10:]) / 10)
    assert summary["loss_end"] < 0.7 * summary["loss_start"]
    assert (summary["steps"], summary["examples"], summary["too_long"]) == (len(logged), 40, 0)
    assert not trained.model.training


def test_equal_seeds_give_equal_weights_and_micro_batches_do_not_matter(tmp_path: Path) -> None:
    first, second, split, other = policy(), policy(), policy(), policy()
    train(first, tmp_path / "1")
    train(second, tmp_path / "2")
    train(other, tmp_path / "3", seed=4)
    train(split, tmp_path / "4", engine=ENGINE.model_copy(update={"micro_batch_tokens": 32}))
    states = [p.model.state_dict() for p in (first, second, other, split)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[3][name], atol=2e-5, rtol=0)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = policy(), policy()
    summary, losses = train(whole, tmp_path / "whole")

    def die(metrics: dict[str, float], step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(policy(), tmp_path / "cut", save_every=3, log=die)
    again, rest = train(resumed, tmp_path / "cut", save_every=3)
    assert rest == losses[6:], "goes on after the checkpoint of step 6"
    assert again == summary
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_long_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    summary, _ = train(policy(), tmp_path, examples=[*examples(5), ([3] * 50, [1] * 50)])
    assert (summary["examples"], summary["too_long"]) == (5, 1)


def test_nothing_short_enough_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 40 examples has at most 3 tokens"):
        train(policy(), tmp_path, sequence_length=3)
