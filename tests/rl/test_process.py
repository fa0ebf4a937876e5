import pytest
import torch

from posttrain.rl.advantages import BASELINES, SCALES
from posttrain.rl.process import StepReward, process_advantages

TWO = [[StepReward(2, 0.8), StepReward(5, 0.4)], [StepReward(3, 0.2)]]


def of(steps, lengths, scale="group_std"):
    rows = process_advantages(steps, lengths, baseline=BASELINES["group_mean"], scale=SCALES[scale])
    return [row.tolist() for row in rows]


def test_sums_of_the_steps_to_come():
    """UT 5.2, ddof 1: z = [1.091089, -.218218, -.872872]; early tokens of the first response have .872872."""
    first, second = of(TWO, [6, 4])
    assert first == pytest.approx([0.872872] * 3 + [-0.218218] * 3, abs=1e-5)
    assert second == pytest.approx([-0.872872] * 4, abs=1e-5)


def test_without_division_only_the_mean_goes():
    first, second = of(TWO, [6, 4], "none")
    mean = 1.4 / 3
    assert first == pytest.approx([1.2 - 2 * mean] * 3 + [0.4 - mean] * 3)
    assert second == pytest.approx([0.2 - mean] * 4)


def test_tokens_after_the_last_step_have_nothing():
    assert of(TWO, [8, 4])[0][6:] == [0.0, 0.0]


def test_equal_steps_teach_nothing():
    equal = [[StepReward(0, 0.3), StepReward(1, 0.3)], [StepReward(2, 0.3)]]
    assert of(equal, [2, 3]) == [[0.0] * 2, [0.0] * 3]


def test_no_steps_teach_nothing():
    assert of([[], []], [2, 3]) == [[0.0] * 2, [0.0] * 3]
    # A response without steps, beside one with: it has none to sum.
    assert of([[StepReward(0, 1.0), StepReward(1, 0.0)], []], [2, 3])[1] == [0.0] * 3


def test_a_step_split_in_two_halves_counts_twice():
    """Known and documented: the sum rewards splitting into more steps, so it is not invariant."""
    whole = of([[StepReward(3, 1.0)], [StepReward(3, 0.0)]], [4, 4], "none")
    split = of([[StepReward(1, 1.0), StepReward(3, 1.0)], [StepReward(3, 0.0)]], [4, 4], "none")
    assert whole[0][0] == pytest.approx(0.5)
    assert split[0][0] == pytest.approx(2 / 3)


def test_the_order_of_responses_does_not_matter():
    torch.testing.assert_close(of(TWO[::-1], [4, 6])[::-1], of(TWO, [6, 4]))
