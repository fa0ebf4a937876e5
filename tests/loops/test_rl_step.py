import dataclasses
import math
import random

import pytest
import torch

from posttrain.engine.trainer import StepStats
from posttrain.loops.recipe import choose_recipe
from posttrain.loops.rl_batch import WATCHED, watched
from posttrain.loops.rl_step import (
    Counts,
    Trajectory,
    make_loss,
    make_micro_batches,
    mismatch_metrics,
    step_metrics,
    token_ids,
)
from posttrain.loops.scoring import score
from posttrain.losses.policy import CORRECTIONS
from posttrain.losses.reduce import AGGREGATES, Denominators
from posttrain.records import Rollout
from tests.loops.toy import rl_section, start_policy
from tests.plain import sequence_logprobs

POLICY = start_policy()
COUNTS = Counts(Denominators(sequences=8, tokens=100, max_tokens=24), trained_tokens=21)


def rollouts() -> list[Rollout]:
    rng = random.Random(0)
    made = []
    for length in (3, 7, 1, 6, 4):
        prompt, response = (tuple(rng.randrange(5, 250) for _ in range(n)) for n in (length + 2, length))
        sampled = tuple(rng.uniform(-3.0, 0.0) for _ in response)
        made.append(Rollout("p", prompt, response, sampled, "stop", (0,) * length))
    return made


def trajectories(*, off_policy: bool = False) -> list[Trajectory]:
    made = rollouts()
    now = score(POLICY.model, [token_ids(r) for r in made], micro_batch_tokens=4096, temperature=1.0)
    generator = torch.Generator().manual_seed(1)
    shifts = [0.3 * torch.randn(scores.shape, generator=generator) for scores in now]
    advantages = (1.0, -0.5, 0.25, -1.0, 0.75)
    return [
        Trajectory(rollout, torch.full_like(scores, advantage), scores + shift if off_policy else None, scores - shift)
        for rollout, advantage, scores, shift in zip(made, advantages, now, shifts, strict=True)
    ]


def total(recipe, items, *, tokens: int, temperature: float = 1.0) -> tuple[float, dict[str, float], torch.Tensor]:
    """Loss, metrics and embedding gradient of a batch, summed over its micro-batches."""
    POLICY.model.zero_grad()
    loss_fn = make_loss(recipe, COUNTS, temperature=temperature)
    sums: dict[str, float] = {}
    for batch in make_micro_batches(items, tokens=tokens, device=torch.device("cpu")):
        loss, metrics = loss_fn(POLICY.model, batch)
        loss.backward()
        for name, value in {"loss": loss, **metrics}.items():
            before = sums.get(name, 0.0)
            sums[name] = max(before, value.item()) if name.endswith("_max") else before + value.item()
    return sums.pop("loss"), sums, POLICY.model.get_input_embeddings().weight.grad.clone()


def in_loss(estimator: str, coefficient: float) -> dict:
    return {
        "kind": "in_loss",
        "estimator": estimator,
        "coefficient": coefficient,
        "controller": "fixed",
        "reset_reference": 0,
    }


def recipe_of(name: str = "dr_grpo", **changes):
    objective = rl_section(name).objective
    return choose_recipe(type(objective).model_validate(objective.model_dump() | changes, strict=False), group_size=8)


def test_the_default_on_policy_is_the_plain_policy_gradient():
    """Dr. GRPO, one step per batch: the gradient of -sum A_i log pi(y_i) / (N C); the loss is -sum A_i L_i / (N C)."""
    items = trajectories()
    loss, metrics, gradient = total(recipe_of(), items, tokens=4096)
    assert loss == pytest.approx(-sum(float(t.advantages.sum()) for t in items) / (8 * 24), rel=1e-5)
    assert metrics["train/clip_fraction"] == 0.0
    POLICY.model.zero_grad()
    for item in items:
        prompt, response = token_ids(item.rollout)
        ids = torch.tensor([prompt + response])
        mask = torch.tensor([[0] * len(prompt) + [1] * len(response)])
        whole = sequence_logprobs(POLICY.model, ids, mask, temperature=1.0).sum()
        (-item.advantages[0] * whole / (8 * 24)).backward()
    torch.testing.assert_close(gradient, POLICY.model.get_input_embeddings().weight.grad, rtol=1e-3, atol=1e-6)


def test_the_value_of_the_loss_says_nothing():
    """UT 5.1: on-policy GRPO has loss 0 and a gradient; as a token mean it is -sum A_i L_i / sum L."""
    advantages = (1.5, -0.5, -0.5, -0.5)
    items = [
        dataclasses.replace(item, advantages=torch.full_like(item.advantages, a))
        for item, a in zip(trajectories(), advantages, strict=False)
    ]
    lengths = [len(t.rollout.response_ids) for t in items]
    loss, _, gradient = total(recipe_of("grpo", kl="none"), items, tokens=4096)
    assert abs(loss) < 1e-7 and gradient.abs().max() > 1e-4
    by_token, _, _ = total(recipe_of("grpo", kl="none", aggregate="token_mean"), items, tokens=4096)
    assert by_token == pytest.approx(-sum(a * n for a, n in zip(advantages, lengths, strict=True)) / 100)


def test_mismatch_metrics():
    """UT 5.9: log-ratios ln 2 and 0 (one of three tokens is padding): weights 2 and 1."""
    old = torch.tensor([[-1.0, -1.0, -7.0]])
    sampled = torch.tensor([[-1.0 - math.log(2.0), -1.0, 0.0]])
    counts = Counts(Denominators(1, 2, 3), trained_tokens=2)
    metrics = {k: v.item() for k, v in mismatch_metrics(old, sampled, torch.tensor([[1.0, 1.0, 0.0]]), counts).items()}
    assert metrics["rollout/mismatch"] == pytest.approx(math.log(2.0) / 2)
    assert metrics["rollout/mismatch_max"] == pytest.approx(math.log(2.0))
    # exp(u) - 1 - u with u = old - sampled = ln 2.
    assert metrics["rollout/mismatch_k3"] == pytest.approx((1.0 - math.log(2.0)) / 2)
    stats = [StepStats(0.0, 1.0, 0.1, metrics | {"train/ratio": 1.0})]
    assert step_metrics(stats)["rollout/effective_samples"] == pytest.approx((2 + 1) ** 2 / (2 * (4 + 1)))


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("correction", ["none", {"kind": "truncated", "cap": 2.0}])
def test_any_split_gives_the_same_loss_metrics_and_gradient(off_policy, aggregate, correction):
    recipe = recipe_of(aggregate=aggregate, correction=correction, kl=in_loss("k3_corrected", 0.1))
    items = trajectories(off_policy=off_policy)
    whole = total(recipe, items, tokens=4096)
    for tokens in (1, 20):
        split = total(recipe, items[::-1], tokens=tokens)
        assert split[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-6)
        assert split[1] == pytest.approx(whole[1], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(split[2], whole[2], rtol=1e-3, atol=1e-5)


def test_current_log_probabilities_are_the_old_ones_when_none_are_given():
    items = trajectories()
    scores = score(POLICY.model, [token_ids(t.rollout) for t in items], micro_batch_tokens=4096, temperature=1.0)
    explicit = [dataclasses.replace(t, old=s) for t, s in zip(items, scores, strict=True)]
    first, second = (total(recipe_of(), some, tokens=4096) for some in (items, explicit))
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    torch.testing.assert_close(first[2], second[2], rtol=1e-3, atol=1e-6)


def test_the_kl_in_the_loss_is_added_with_its_coefficient():
    items = trajectories()
    without = total(recipe_of(), items, tokens=4096)[0]
    with_kl = total(recipe_of(kl=in_loss("k2", 0.5)), items, tokens=4096)[0]
    scores = score(POLICY.model, [token_ids(t.rollout) for t in items], micro_batch_tokens=4096, temperature=1.0)
    k2 = sum(0.5 * float((s - t.reference).square().sum()) for t, s in zip(items, scores, strict=True))
    assert with_kl - without == pytest.approx(0.5 * k2 / (8 * 24), abs=1e-5)


def test_entropy_and_mismatch_are_means_over_trained_tokens():
    items = trajectories()
    metrics = total(recipe_of(), items, tokens=4096, temperature=2.0)[1]
    entropy = mismatch = 0.0
    for item in items:
        prompt, response = token_ids(item.rollout)
        with torch.no_grad():
            logits = POLICY.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 2.0
        logprobs = torch.log_softmax(logits, -1)
        entropy += float(torch.distributions.Categorical(logits=logits).entropy().sum())
        now = logprobs[torch.arange(len(response)), torch.tensor(response)]
        mismatch += float((now - torch.tensor(item.rollout.logprobs)).abs().sum())
    assert metrics["train/entropy"] == pytest.approx(entropy / 21, rel=1e-4)
    assert metrics["rollout/mismatch"] == pytest.approx(mismatch / 21, rel=1e-4)


def test_tokens_out_of_the_loss_count_as_given():
    """A response whose first k tokens the loss does not see is one whose prompt ends with them."""
    recipe = choose_recipe(rl_section("grpo").objective, group_size=8)
    whole = trajectories(off_policy=True)
    masked, moved = [], []
    for k, item in zip((1, 3, 0, 5, 2), whole, strict=True):
        rollout, length = item.rollout, len(item.rollout.response_ids)
        masked.append(dataclasses.replace(item, fresh=[place >= k for place in range(length)]))
        later = dataclasses.replace(
            rollout,
            prompt_ids=rollout.prompt_ids + rollout.response_ids[:k],
            response_ids=rollout.response_ids[k:],
            logprobs=rollout.logprobs[k:],
        )
        rows = {name: getattr(item, name)[k:] for name in ("advantages", "old", "reference")}
        moved.append(dataclasses.replace(item, rollout=later, **rows))
        assert masked[-1].tokens == moved[-1].tokens == length - k
    for tokens in (16, 4096):
        loss, metrics, gradient = total(recipe, masked, tokens=tokens)
        wanted, wanted_metrics, wanted_gradient = total(recipe, moved, tokens=tokens)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert metrics == pytest.approx(wanted_metrics, rel=1e-4, abs=1e-7)
        assert torch.allclose(gradient, wanted_gradient, atol=1e-6)


def test_weights_are_those_of_each_token_whatever_version_sampled_it():
    """e^-1 / e^-2 = 2.718, cut to 2; e^-1 / e^-0.5 = 0.607; 1 where the versions agree. The sequence: e^(1-0.5+0)."""
    old_BT, sampled_BT, mask_BT = torch.tensor([[-1.0] * 3]), torch.tensor([[-2.0, -0.5, -1.0]]), torch.ones(1, 3)
    wanted = {
        "none": [1.0, 1.0, 1.0],
        "truncated": [2.0, 0.60653, 1.0],
        "masked": [0.0, 0.60653, 1.0],
        "sequence_mask": [1.64872] * 3,
    }
    for kind, weights in wanted.items():
        assert CORRECTIONS[kind](old_BT, sampled_BT, mask_BT, cap=2.0)[0].tolist() == pytest.approx(weights, abs=1e-5)


def test_of_many_groups_every_so_many_is_watched():
    assert watched(16, 16) == [(p, 0) for p in range(16)]
    assert watched(40, 8) == [(p, 0) for p in range(0, 40, 3)]
    assert max(len(watched(groups, 32)) for groups in range(1, 200)) == WATCHED


def test_of_few_samples_one_of_sixteen_is_watched():
    assert watched(4, 4) == [(0, 0)]
    assert watched(16, 4) == [(p, 0) for p in range(0, 16, 4)]
    assert watched(1, 2) == [(0, 0)]
