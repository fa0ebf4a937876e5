"""DeepSpeed steps against plain torch, micro-batches against one batch, resumed against uninterrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from posttrain.engine.schedule import learning_rate
from posttrain.errors import NonFiniteError
from tests.engine.conftest import micro_model
from tests.engine.rl_training import OBJECTIVES, micro_batches, rl_step, trajectories, value_step, valued_trajectories
from tests.engine.training import (
    Item,
    batch,
    largest_gap,
    loss_fn,
    optimizer,
    plain_steps,
    trainer_of,
    weights,
)
from tests.engine.two_ranks import ENGINES

Precision = Literal["fp32", "bf16"]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_as_plain_torch_does(zero_stage: int) -> None:
    batches = [batch(2, seed) for seed in range(4)]
    trainer = trainer_of(micro_model(), zero_stage=zero_stage)
    stats = [trainer.step(items, loss_fn) for items in batches]
    rates = [learning_rate(step, total_steps=10, optimizer=optimizer()) for step in range(4)]
    assert [s.lr for s in stats] == rates
    # The scaled weights are of size 0.1 ... 1; a step moves them by 1e-2.
    assert largest_gap(weights(trainer), plain_steps(micro_model(), batches, rates)) < 2e-5


def test_stats_are_those_of_the_whole_batch() -> None:
    model = micro_model()
    items = batch(1)
    loss, metrics = loss_fn(model, items[0])
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    stats = trainer_of(micro_model()).step(batch(4), loss_fn)
    assert stats.loss == pytest.approx(loss.item(), rel=1e-5)
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert stats.metrics == {"tokens": float(metrics["tokens"])}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_equal_one_batch(parts: int) -> None:
    split, whole = trainer_of(micro_model()), trainer_of(micro_model())
    for seed in range(3):
        split_stats, whole_stats = split.step(batch(parts, seed), loss_fn), whole.step(batch(1, seed), loss_fn)
        assert split_stats.loss == pytest.approx(whole_stats.loss, rel=1e-5)
    assert largest_gap(weights(split), weights(whole)) < 2e-5


@pytest.mark.parametrize(
    ("precision", "zero_stage", "kind"),
    [
        ("fp32", 0, "adamw"),
        ("fp32", 0, "muon"),
        ("fp32", 2, "adamw"),
        ("fp32", 3, "adamw"),
        ("bf16", 0, "adamw"),
        ("bf16", 3, "adamw"),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(precision: Precision, zero_stage: int, kind: str) -> None:
    whole = trainer_of(micro_model(), precision=precision, zero_stage=zero_stage, kind=kind)
    for seed in range(3):
        whole.step(batch(2, seed), loss_fn)
    saved = whole.state_dict()
    rest = [whole.step(batch(2, seed), loss_fn) for seed in (3, 4)]

    resumed = trainer_of(micro_model(seed=9), precision=precision, zero_stage=zero_stage, kind=kind)
    resumed.load_state_dict(saved)
    assert resumed.steps_done == 3
    assert [resumed.step(batch(2, seed), loss_fn) for seed in (3, 4)] == rest
    assert largest_gap(weights(resumed), weights(whole)) == 0.0


def test_bf16_keeps_updates_below_its_own_resolution() -> None:
    # bf16 resolves about 0.4 % of a weight: twenty steps of 1e-5 are lost without fp32 master weights.
    before = {name: tensor.bfloat16().float() for name, tensor in micro_model().state_dict().items()}
    trainer = trainer_of(micro_model(), precision="bf16", lr=1e-5, warmup=0.0, schedule="constant", weight_decay=0.0)
    for _ in range(20):
        trainer.step(batch(1), loss_fn)
    moved = [p.detach() for group in trainer._optimizer.param_groups for p in group["params"]]
    start = torch.cat([tensor.flatten() for name, tensor in before.items() if name != "lm_head.weight"])
    end = torch.cat([tensor.flatten() for tensor in moved])
    assert end.dtype == torch.float32
    assert float((end[: len(start)].sum() - start.sum()).abs()) > 0
    assert trainer.model.dtype == torch.bfloat16


def test_bf16_steps_are_those_of_fp32_masters_that_add_micro_batches_up() -> None:
    trainer, model = trainer_of(micro_model(), precision="bf16"), micro_model().to(torch.bfloat16)
    masters = [p.detach().float() for p in model.parameters()]
    start = torch.cat([master.flatten() for master in masters])
    plain = torch.optim.AdamW(masters, lr=0.0, betas=optimizer().betas, weight_decay=optimizer().weight_decay)
    for step in range(3):
        for master in masters:
            master.grad = torch.zeros_like(master)
        for item in batch(3, step):
            loss_fn(model, item)[0].backward()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad += parameter.grad.float()
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(masters, optimizer().grad_clip)
        plain.param_groups[0]["lr"] = learning_rate(step, total_steps=10, optimizer=optimizer())
        plain.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        assert trainer.step(batch(3, step), loss_fn).grad_norm == pytest.approx(float(norm), rel=1e-2)
    moved = [p for group in trainer._optimizer.param_groups for p in group["params"]]
    for mine, parameter in zip(moved, trainer.model.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(parameter, mine.to(torch.bfloat16))
    found, wanted = (torch.cat([p.detach().flatten() for p in some]) for some in (moved, masters))
    # Where a gradient is nearly zero, AdamW makes a whole step of what bf16 leaves of its sign.
    assert float((found - wanted).norm()) < 0.15 * float((wanted - start).norm())


def test_training_imports_nothing_under_the_lock_of_all_imports() -> None:
    """As the finder of distutils does; beside a thread that imports, too, both would wait forever."""
    program = """
import sys
from tests.engine.conftest import micro_model
from tests.engine.training import batch, loss_fn, trainer_of
trainer_of(micro_model()).step(batch(1), loss_fn)
print("distutils" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines()[-1:] == ["False"], result.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_moves_at_every_step(precision: Precision, kind: str) -> None:
    trainer = trainer_of(micro_model(), precision=precision, kind=kind, warmup=0.0, schedule="constant")
    for seed in range(3):
        before = [p.detach().clone() for p in trainer._stepped()]
        trainer.step(batch(2, seed), loss_fn)
        assert not any(torch.equal(old, new) for old, new in zip(before, trainer._stepped(), strict=True))


def test_what_no_micro_batch_reaches_has_no_gradient() -> None:
    def only_the_norm(model: nn.Module, item: Item) -> tuple[Tensor, dict[str, Tensor]]:
        return model.model.norm.weight.float().square().sum(), {}  # type: ignore[union-attr, operator]

    trainer = trainer_of(micro_model(), precision="bf16", weight_decay=0.0)
    trainer.step(batch(1), loss_fn)
    before = weights(trainer)
    trainer.reset_optimizer()
    stats = trainer.step(batch(1), only_the_norm)
    weight = before["model.norm.weight"].float()
    assert stats.grad_norm == pytest.approx(float((2 * weight).norm()), rel=1e-2)
    assert torch.equal(before["lm_head.weight"], weights(trainer)["lm_head.weight"])


def test_a_non_finite_loss_stops_before_the_step() -> None:
    def broken(model: nn.Module, item: Item) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = loss_fn(model, item)
        return loss * float("nan"), metrics

    trainer = trainer_of(micro_model())
    trainer.step(batch(1), loss_fn)
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match="step 1: loss is nan"):
        trainer.step(batch(1), broken)
    assert largest_gap(before, weights(trainer)) == 0.0
    assert trainer.steps_done == 1


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("fp32", 2), ("bf16", 0), ("fp32", 3)])
def test_a_non_finite_gradient_stops_before_the_step(precision: Precision, zero_stage: int) -> None:
    def finite_loss_with_infinite_slope(model: nn.Module, item: Item) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = loss_fn(model, item)
        return torch.sqrt(loss - loss.detach()), metrics

    trainer = trainer_of(micro_model(), precision=precision, zero_stage=zero_stage)
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match=r"gradient (norm is|is not finite)"):
        trainer.step(batch(1), finite_loss_with_infinite_slope)
    assert largest_gap(before, weights(trainer)) == 0.0


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("fp32", 2), ("bf16", 0)])
def test_a_batch_without_gradient_is_a_step_like_any_other(precision: Precision, zero_stage: int) -> None:
    def nothing_to_learn(model: nn.Module, item: Item) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = loss_fn(model, item)
        return loss * 0.0, metrics

    trainer = trainer_of(micro_model(), precision=precision, zero_stage=zero_stage, weight_decay=0.0)
    before = weights(trainer)
    stats = trainer.step(batch(2), nothing_to_learn)
    assert (stats.loss, stats.grad_norm) == (0.0, 0.0)
    assert largest_gap(before, weights(trainer)) == 0.0


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one micro-batch"):
        trainer_of(micro_model()).step([], loss_fn)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have saved."""
    folder = tmp_path_factory.mktemp("two-ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.two_ranks", str(folder)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("precision", "zero_stage"), ENGINES)
def test_two_ranks_equal_one(two_ranks: Path, precision: Precision, zero_stage: int) -> None:
    alone = trainer_of(micro_model(), precision=precision, zero_stage=zero_stage)
    stats = [alone.step(batch(4, seed), loss_fn) for seed in range(2)]
    # In bf16 a weight that lies between two of its numbers may be rounded to either.
    near, gap = (1e-5, 2e-5) if precision == "fp32" else (5e-3, 8e-3)
    for rank in range(2):
        result = torch.load(two_ranks / f"{precision}-{zero_stage}-{rank}.pt", weights_only=True)
        assert result["losses"] == pytest.approx([s.loss for s in stats], rel=near)
        assert result["norms"] == pytest.approx([s.grad_norm for s in stats], rel=10 * near)
        assert result["tokens"] == [s.metrics["tokens"] for s in stats]
        assert largest_gap(result["weights"], weights(alone)) < gap


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_responses_on_each_of_two_ranks_equal_four_on_one(two_ranks: Path, name: str) -> None:
    """Loss, gradient, and all metrics of an RL step."""
    compare(two_ranks, name, rl_step(name, micro_batches(trajectories(), tokens=4096)))


def test_the_value_network_learns_the_same_on_two_ranks(two_ranks: Path) -> None:
    alone = value_step(micro_batches(valued_trajectories(), tokens=4096))
    assert 0.0 < alone["metrics"]["train/value_clip_fraction"] < 1.0
    compare(two_ranks, "value", alone)


def test_the_largest_of_two_ranks_is_the_largest_of_all(two_ranks: Path) -> None:
    """Straight from the responses; the ranks' own differ, so that it is neither their sum nor always the first's."""
    largest = [float((t.old - torch.tensor(t.rollout.logprobs)).abs().max()) for t in trajectories()]
    assert max(largest[0::2]) != max(largest[1::2])
    for rank in range(2):
        metrics = torch.load(two_ranks / f"grpo-{rank}.pt", weights_only=True)["metrics"]
        assert metrics["rollout/mismatch_max"] == pytest.approx(max(largest), rel=1e-5)


def compare(two_ranks: Path, name: str, alone: dict[str, Any]) -> None:
    """Both ranks' step with that of one process."""
    for rank in range(2):
        result = torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True)
        assert result["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-6)
        assert result["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6)
        assert float((result["gradient"] - alone["gradient"]).norm()) < 1e-5 * float(alone["gradient"].norm())
