"""The loss of a batch and its gradient do not depend on how the batch is cut: every objective, every cut of four.

Two processes: tests/engine/test_trainer.py.
"""

from pathlib import Path

import pytest
import torch

from posttrain.losses.reduce import AGGREGATES
from tests.loops.tabular import Table, loss_of, random_table, recipe_of, token_logprobs, trajectory

OBJECTIVES = sorted(path.stem for path in Path("objectives").glob("*.yaml") if "objective:" in path.read_text("utf-8"))
TOKENS, ACTIONS = 12, 8
TABLE = random_table(0, tokens=TOKENS, actions=ACTIONS)
RESPONSES = [(1, 5, 2), (7, 0, 3, 3, 6, 2, 1), (4,), (0, 6, 5, 2, 2)]
ADVANTAGES = (1.5, -0.5, 0.25, -1.25)


def partitions(items: list[int]) -> list[list[list[int]]]:
    """Every way of cutting a batch into micro-batches: Bell's numbers."""
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    made = []
    for smaller in partitions(rest):
        made.append([[first], *smaller])
        made += [
            [[first, *part] if k == number else part for k, part in enumerate(smaller)]
            for number in range(len(smaller))
        ]
    return made


def batch(*, off_policy: bool):
    """Four responses; off-policy their old log-probabilities differ enough for some ratios to be clipped."""
    generator = torch.Generator().manual_seed(2)
    items = []
    for response, advantage in zip(RESPONSES, ADVANTAGES, strict=True):
        now = token_logprobs(TABLE, 9, response)
        shifts = [0.3 * torch.randn(now.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        old, reference = now + shifts[0], (now + shifts[1]).float()
        items.append(trajectory(9, response, advantage, old=old if off_policy else None, reference=reference))
    return items


def loss_and_gradient(recipe, parts) -> tuple[float, torch.Tensor]:
    model = Table(TABLE.float())
    loss = loss_of(model, recipe, parts, max_tokens=16)
    loss.backward()
    return loss.item(), model.logits_VA.grad


def assert_every_cut_agrees(recipe, items) -> None:
    whole_loss, whole_gradient = loss_and_gradient(recipe, [items])
    assert whole_gradient.abs().max() > 1e-4
    for cut in partitions(list(range(len(items)))):
        loss, gradient = loss_and_gradient(recipe, [[items[i] for i in part] for part in cut])
        assert loss == pytest.approx(whole_loss, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-5, atol=1e-6)


def test_four_sequences_have_fifteen_cuts():
    cuts = partitions([0, 1, 2, 3])
    assert len({tuple(sorted(map(tuple, cut))) for cut in cuts}) == len(cuts) == 15


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_cut_gives_the_same_loss_and_gradient(name, off_policy):
    assert_every_cut_agrees(recipe_of(name, group_size=4), batch(off_policy=off_policy))


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_corrected"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_aggregate_and_kl(aggregate, estimator):
    kl = {"kind": "in_loss", "estimator": estimator, "coefficient": 0.1, "controller": "fixed", "reset_reference": 0}
    recipe = recipe_of("dr_grpo", group_size=4, aggregate=aggregate, kl=kl)
    assert_every_cut_agrees(recipe, batch(off_policy=True))
