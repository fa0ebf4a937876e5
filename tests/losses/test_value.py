import pytest
import torch

from posttrain.losses.value import clipped_value_loss


def one(value: float, old: float, returns: float) -> tuple[float, float]:
    """(loss, gradient) of one token at clip .2."""
    predicted = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    loss = clipped_value_loss(predicted, torch.tensor([[old]]).double(), torch.tensor([[returns]]).double(), clip=0.2)
    loss.sum().backward()
    return loss.item(), predicted.grad.item()


@pytest.mark.parametrize(
    ("value", "old", "returns", "loss", "gradient"),
    [
        (0.9, 0.5, 1.0, 0.045, 0.0),  # UT 3.6: the clipped branch, at .7, wins
        (0.6, 0.5, 1.0, 0.08, -0.4),  # within the clip: the plain square
        (1.5, 0.5, 1.0, 0.125, 0.5),  # beyond the returns: the plain square is larger, and pulls back
        (0.1, 0.5, 1.0, 0.405, -0.9),  # moved away from the returns: never clipped
    ],
)
def test_the_larger_of_two_squares(value, old, returns, loss, gradient):
    assert one(value, old, returns) == pytest.approx((loss, gradient))


def test_no_clip_is_reached_at_the_start():
    torch.manual_seed(0)
    old, returns = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(clipped_value_loss(old.clone(), old, returns, clip=0.2), 0.5 * (old - returns).square())
