import pytest
import torch

from posttrain.rl.gae import explained_variance, gae, token_rewards

REWARDS = torch.tensor([0.0, 0.0, 1.0])
VALUES = torch.tensor([0.5, 0.6, 0.8], dtype=torch.float64)


@pytest.mark.parametrize(
    ("lam", "advantages"), [(0.95, [0.4705, 0.39, 0.2]), (1.0, [0.5, 0.4, 0.2]), (0.0, [0.1, 0.2, 0.2])]
)
def test_gae(lam, advantages):
    """UT 3.5, gamma 1; returns are A + V."""
    got, returns = gae(REWARDS, VALUES, gamma=1.0, lam=lam)
    assert got.tolist() == pytest.approx(advantages)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(advantages, VALUES.tolist(), strict=True)])


def test_gae_is_the_weighted_sum_of_temporal_differences():
    torch.manual_seed(0)
    rewards, values = torch.randn(6).double(), torch.randn(6).double()
    gamma, lam = 0.9, 0.7
    following = torch.cat([values[1:], torch.zeros(1)])
    delta = rewards + gamma * following - values
    direct = [sum((gamma * lam) ** k * float(delta[t + k]) for k in range(6 - t)) for t in range(6)]
    assert gae(rewards, values, gamma=gamma, lam=lam)[0].tolist() == pytest.approx(direct)


def test_values_shift_nothing_but_themselves_at_lambda_one():
    """lam 1: the return is the sum of rewards to come, whatever the value network says."""
    for values in (VALUES, VALUES - 7.0):
        assert gae(REWARDS, values, gamma=1.0, lam=1.0)[1].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_rewards_of_tokens():
    """UT 3.7: the score at the last token, -beta k1 at each; then GAE(.95)."""
    rewards = token_rewards(torch.tensor([0.1, -0.2, 0.3]), 1.0, coefficient=0.05)
    assert rewards.tolist() == pytest.approx([-0.005, 0.01, 0.985])
    advantages, _ = gae(rewards, VALUES, gamma=1.0, lam=0.95)
    assert advantages.tolist() == pytest.approx([0.4614625, 0.38575, 0.185])


def test_explained_variance():
    """UT 3.6: 1 - Var(returns - values) / Var(returns)."""
    returns = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((4,), 5.0), returns) == pytest.approx(0.0)
    # Residuals 0, .5, 1, 1.5: a quarter of the variance is left.
    assert explained_variance(0.5 * returns, returns) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(4)) == 0.0
