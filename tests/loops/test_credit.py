import pytest
import torch

from posttrain.loops.credit import Rewarded, assign_credit
from posttrain.loops.recipe import Recipe, choose_recipe
from posttrain.rl.process import StepReward
from tests.loops.toy import objective_of

VALUE = {
    "kind": "value",
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "lr_scale": 1.0,
    "warmup_steps": 0,
    "reward_model": None,
}


def recipe_of(name: str, **changes) -> Recipe:
    return choose_recipe(objective_of(name, **changes), group_size=2)


def rewarded(**changes) -> Rewarded:
    """Two prompts with two responses each, of 3, 2, 1 and 2 tokens."""
    rewards_PG = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    everything = {
        "scores_PG": rewards_PG,
        "rewards_PG": rewards_PG,
        "valid_PG": torch.ones(2, 2, dtype=torch.bool),
        "trained_PG": torch.ones(2, 2, dtype=torch.bool),
        "lengths": [[3, 2], [1, 2]],
        "k1": [],
        "steps": [],
        "values": [],
    }
    return Rewarded(**(everything | changes))


def rows(credits) -> list[list[float]]:
    return [credit.advantages_T.tolist() for group in credits for credit in group]


def test_an_outcome_is_shared_by_all_tokens():
    assert rows(assign_credit(rewarded(), recipe_of("dr_grpo"))) == [[0.5] * 3, [-0.5] * 2, [0.0], [0.0] * 2]


def test_steps_credit_what_leads_to_them():
    """Dr. GRPO's way, without std: step rewards 1, 0 and 0.5, mean .5."""
    steps = [[[StepReward(0, 1.0), StepReward(2, 0.0)], [StepReward(1, 0.5)]], [[], []]]
    credit = {"kind": "process", "steps": "checker", "outcome": 0.0}
    recipe = recipe_of("dr_grpo", credit=credit)
    assert rows(assign_credit(rewarded(steps=steps), recipe)) == [[0.0, -0.5, -0.5], [0.0] * 2, [0.0], [0.0] * 2]
    half = recipe_of("dr_grpo", credit=credit | {"outcome": 0.5})
    assert rows(assign_credit(rewarded(steps=steps), half))[:2] == [[0.25, -0.25, -0.25], [-0.25] * 2]
    # Without a verdict a response is in no statistic and learns nothing.
    unverified = rewarded(steps=steps, valid_PG=torch.tensor([[True, False], [True, True]]))
    assert rows(assign_credit(unverified, recipe))[:2] == [[0.0, -0.5, -0.5], [0.0, 0.0]]


def test_a_value_network_credits_what_it_did_not_expect():
    """UT 3.5 and 3.7 through the whole: values [.5, .6, .8], score 1, KL .05 per token, lambda .95."""
    values = [[torch.tensor([0.5, 0.6, 0.8]), torch.zeros(2)], [torch.zeros(1), torch.zeros(2)]]
    k1 = [[torch.tensor([0.1, -0.2, 0.3]), torch.zeros(2)], [torch.zeros(1), torch.zeros(2)]]
    without = assign_credit(rewarded(values=values), recipe_of("dr_grpo", baseline=VALUE))
    assert rows(without)[0] == pytest.approx([0.4705, 0.39, 0.2])
    assert without[0][0].returns_T.tolist() == pytest.approx([0.9705, 0.99, 1.0])
    kl = {"kind": "in_reward", "estimator": "k1", "coefficient": 0.05, "controller": "fixed", "reset_reference": 0}
    shaped = assign_credit(rewarded(values=values, k1=k1), recipe_of("dr_grpo", baseline=VALUE, kl=kl))
    assert rows(shaped)[0] == pytest.approx([0.4614625, 0.38575, 0.185])
    assert rows(shaped)[1] == [0.0, 0.0]


def test_returns_are_taken_before_whitening():
    values = [[torch.tensor([0.5, 0.6, 0.8]), torch.zeros(2)], [torch.zeros(1), torch.zeros(2)]]
    plain, white = (
        assign_credit(rewarded(values=values), recipe_of("dr_grpo", baseline=VALUE, scale=scale))
        for scale in ("none", "whiten")
    )
    for before_G, after_G in zip(plain, white, strict=True):
        for before, after in zip(before_G, after_G, strict=True):
            assert torch.equal(before.returns_T, after.returns_T)
    tokens = torch.cat([credit.advantages_T for group in white for credit in group])
    assert (tokens.mean().item(), tokens.std().item()) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_without_a_verdict_the_value_network_learns_nothing():
    values = [[torch.tensor([0.5, 0.6, 0.8]), torch.zeros(2)], [torch.zeros(1), torch.zeros(2)]]
    unverified = rewarded(values=values, valid_PG=torch.tensor([[False, True], [True, True]]))
    credit = assign_credit(unverified, recipe_of("dr_grpo", baseline=VALUE))[0][0]
    assert credit.advantages_T.tolist() == [0.0] * 3
    assert torch.equal(credit.returns_T, credit.values_T)
