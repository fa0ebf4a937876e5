import pytest
import torch

from posttrain.rl.truncation import TRUNCATIONS

REWARDS = torch.tensor([[1.0, 0.0], [0.5, 1.2]], dtype=torch.float64)
UNFINISHED = torch.tensor([[False, True], [True, False]])


@pytest.mark.parametrize(
    ("kind", "rewards"),
    [
        ("keep", [[1.0, 0.0], [0.5, 1.2]]),
        ("mask", [[1.0, 0.0], [0.5, 1.2]]),
        ("penalty", [[1.0, -2.0], [-1.5, 1.2]]),
        ("replace", [[1.0, 2.0], [2.0, 1.2]]),
    ],
)
def test_rewards_of_responses_without_an_end(kind, rewards):
    assert TRUNCATIONS[kind](REWARDS, UNFINISHED, amount=2.0).tolist() == rewards


@pytest.mark.parametrize("kind", TRUNCATIONS)
def test_finished_responses_keep_their_reward(kind):
    assert torch.equal(TRUNCATIONS[kind](REWARDS, torch.zeros_like(UNFINISHED), amount=9.0), REWARDS)
