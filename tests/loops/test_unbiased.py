"""E[gradient] of the objectives against the true policy gradient, over every batch that a tiny policy can sample.

The batches go through recipe, advantages and loss as in training; the truth and the closed forms do not. KL in the loss
is off: its gradient has tests of its own.
"""

import functools
import itertools
import math
import statistics
from collections import Counter

import pytest
import torch

from posttrain.rl.advantages import advantages
from tests.loops.tabular import (
    LIMIT,
    NO_KL,
    PROMPTS,
    Table,
    loss_of,
    random_table,
    recipe_of,
    responses,
    score_of,
    token_logprobs,
    trajectory,
)

TABLE = random_table(4)
REFERENCE = random_table(5)
REWARDS = {
    PROMPTS[0]: dict(zip(responses(), (0.5, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0), strict=True)),
    PROMPTS[1]: dict(zip(responses(), (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0), strict=True)),
}
GROUP = 3


def chance(prompt, response) -> float:
    return float(token_logprobs(TABLE, prompt, response).sum().exp())


def true_gradient(prompts, beta: float = 0.0) -> torch.Tensor:
    """Of the mean over the prompts of E[r] - beta KL(pi || reference)."""
    point = TABLE.clone().requires_grad_()
    total = 0.0
    for prompt, response in itertools.product(prompts, responses()):
        logprob = token_logprobs(point, prompt, response).sum()
        gap = logprob - token_logprobs(REFERENCE, prompt, response).sum()
        total = total + logprob.exp() * (REWARDS[prompt][response] - beta * gap)
    return torch.autograd.grad(total / len(prompts), point)[0]


def groups_of(prompt, size):
    """(samples, probability): every group, their order aside."""
    for samples in itertools.combinations_with_replacement(responses(), size):
        orders = math.factorial(size) / math.prod(math.factorial(n) for n in Counter(samples).values())
        yield samples, orders * math.prod(chance(prompt, response) for response in samples)


@functools.cache
def expected_gradient(name, *, prompts=PROMPTS[:1], size=GROUP, in_reward=False) -> torch.Tensor:
    """E over all batches of minus the gradient of the objective's loss."""
    recipe = recipe_of(name, group_size=size, **({} if in_reward else {"kl": NO_KL}))
    model = Table(TABLE.float())
    total = torch.zeros(())
    for batch in itertools.product(*(groups_of(prompt, size) for prompt in prompts)):
        rows = [[REWARDS[prompt][y] for y in ys] for prompt, (ys, _) in zip(prompts, batch, strict=True)]
        rewards = torch.tensor(rows, dtype=torch.float64)
        if recipe.kl_in_reward:
            gaps = [
                [float((token_logprobs(TABLE, x, y) - token_logprobs(REFERENCE, x, y)).sum()) for y in ys]
                for x, (ys, _) in zip(prompts, batch, strict=True)
            ]
            rewards -= recipe.kl_in_reward * torch.tensor(gaps)
        valid = torch.ones(rewards.shape, dtype=torch.bool)
        weights = advantages(rewards, valid, baseline=recipe.baseline, scale=recipe.scale)
        items = [
            trajectory(prompt, response, float(weights[p, g]))
            for p, (prompt, (samples, _)) in enumerate(zip(prompts, batch, strict=True))
            for g, response in enumerate(samples)
        ]
        probability = math.prod(probability for _, probability in batch)
        total = total + probability * loss_of(model, recipe, [items], max_tokens=LIMIT)
    total.backward()
    return -model.logits_VA.grad.double()


def closed_form(weigh, prompt) -> torch.Tensor:
    """E[sum_i weigh(rewards, lengths, i) grad log pi(y_i)] over the ordered groups of a prompt, without our code."""
    scores = {y: score_of(TABLE, prompt, y) for y in responses()}
    chances = {y: chance(prompt, y) for y in responses()}
    total = torch.zeros_like(TABLE)
    for samples in itertools.product(responses(), repeat=GROUP):
        rewards, lengths = [REWARDS[prompt][y] for y in samples], [len(y) for y in samples]
        probability = math.prod(chances[y] for y in samples)
        for i, response in enumerate(samples):
            total += probability * weigh(rewards, lengths, i) * scores[response]
    return total


def standardised(rewards, i) -> float:
    return (rewards[i] - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-6)


def compare(found, truth) -> tuple[float, float]:
    """(cosine, ratio of the lengths)."""
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), truth.flatten(), dim=0)
    return float(cosine), float(found.norm() / truth.norm())


def test_the_policy_is_enumerated():
    for prompt in PROMPTS:
        assert sum(chance(prompt, response) for response in responses()) == pytest.approx(1.0)
        assert sum(probability for _, probability in groups_of(prompt, GROUP)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        # The baseline of reinforce is the batch's mean, which holds the sample itself; the batch is one group here.
        ("reinforce", 1 - 1 / GROUP),
        ("rloo", 1.0),
        # The constant aggregate divides by the largest length.
        ("dr_grpo", (1 - 1 / GROUP) / LIMIT),
        # On-policy the squared log-ratio has no gradient.
        ("kimi_k15", 1 - 1 / GROUP),
    ],
)
def test_these_have_the_true_gradient_up_to_a_factor(name, factor):
    torch.testing.assert_close(
        expected_gradient(name), factor * true_gradient(PROMPTS[:1]), rtol=1e-5, atol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize(("name", "factor"), [("reinforce", 1 - 1 / 4), ("dr_grpo", (1 - 1 / 2) / LIMIT)])
def test_over_two_prompts(name, factor):
    """Two groups of two: the batch's mean holds a quarter of the sample itself, the group's a half."""
    found = expected_gradient(name, prompts=PROMPTS, size=2)
    torch.testing.assert_close(found, factor * true_gradient(PROMPTS), rtol=1e-5, atol=1e-6)


def test_the_kl_in_the_reward_of_rloo_is_the_gradient_of_the_penalised_reward():
    beta = recipe_of("rloo", group_size=GROUP).kl_in_reward
    assert beta > 0
    found = expected_gradient("rloo", in_reward=True)
    torch.testing.assert_close(found, true_gradient(PROMPTS[:1], beta=beta), rtol=1e-5, atol=1e-6)


WEIGHTS = {
    # (1/G) A / L, with A over the group's std.
    "grpo": lambda rewards, lengths, i: standardised(rewards, i) / lengths[i] / GROUP,
    "gspo": lambda rewards, lengths, i: standardised(rewards, i) / lengths[i] / GROUP,
    # A over the tokens of the batch, which is one group here.
    "dapo": lambda rewards, lengths, i: standardised(rewards, i) / sum(lengths),
    "cispo": lambda rewards, lengths, i: standardised(rewards, i) / sum(lengths),
    # No baseline: (1/G) r / L.
    "online_rft": lambda rewards, lengths, i: rewards[i] / lengths[i] / GROUP,
    # The two divisions of grpo, one at a time.
    "std alone": lambda rewards, lengths, i: standardised(rewards, i) / GROUP,
    "length alone": lambda rewards, lengths, i: (rewards[i] - statistics.mean(rewards)) / lengths[i] / GROUP,
}


BIASED = ("grpo", "gspo", "dapo", "cispo", "online_rft")


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_these_follow_another_objective(name, prompt):
    """On-policy each is exactly its formula."""
    found = expected_gradient(name, prompts=(prompt,))
    torch.testing.assert_close(found, closed_form(WEIGHTS[name], prompt), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "cosine", "ratio"),
    [
        ("grpo", 0.941, 1.377),
        ("std alone", 0.973, 2.015),
        ("length alone", 0.987, 0.431),
        ("dapo", 0.960, 1.352),
        ("online_rft", 0.946, 0.956),
    ],
)
def test_by_how_much_they_differ(name, cosine, ratio):
    """Of the gradients summed over an easy and a hard prompt: cosine with the truth, and length relative to it.

    A factor alone would have cosine 1. With G = 3 and rewards 0 or 1 the std would be a factor (every group that
    teaches has the same one), which is why one reward is 1/2.
    """
    gradients = [
        expected_gradient(name, prompts=(prompt,)) if name in BIASED else closed_form(WEIGHTS[name], prompt)
        for prompt in PROMPTS
    ]
    assert compare(sum(gradients) / len(PROMPTS), true_gradient(PROMPTS)) == pytest.approx((cosine, ratio), abs=1e-3)


@pytest.mark.parametrize(
    ("rewards", "online_rft", "dr_grpo"),
    [
        ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [0.5, -0.5, -0.5, 0.5]),
        ([0.0] * 4, [0.0] * 4, [0.0] * 4),
        ([1.0] * 4, [1.0] * 4, [0.0] * 4),
    ],
)
def test_weights_of_the_samples(rewards, online_rft, dr_grpo):
    """UT 6: what a group's samples count; a group solved throughout still moves online_rft."""
    for name, expected in (("online_rft", online_rft), ("dr_grpo", dr_grpo)):
        recipe = recipe_of(name, group_size=4)
        weights = advantages(
            torch.tensor([rewards]), torch.ones(1, 4, dtype=torch.bool), baseline=recipe.baseline, scale=recipe.scale
        )[0]
        response = responses()[0]
        unit = score_of(TABLE, PROMPTS[0], response).float()
        found = []
        for weight in weights.tolist():
            model = Table(TABLE.float())
            loss_of(model, recipe, [[trajectory(PROMPTS[0], response, weight)]], max_tokens=1).backward()
            found.append(-float((model.logits_VA.grad * unit).sum() / unit.square().sum()))
        assert found == pytest.approx(expected, abs=1e-6)
