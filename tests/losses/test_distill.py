import pytest
import torch

from posttrain.losses.distill import forward_kl, reverse_kl

STUDENT = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float32).log()
TEACHER = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float32).log()


def test_values():
    """UT 10.4"""
    assert reverse_kl(STUDENT, TEACHER).item() == pytest.approx(0.0252672, abs=1e-6)
    assert forward_kl(STUDENT, TEACHER).item() == pytest.approx(0.0258154, abs=1e-6)


def test_gradient_of_the_student():
    """UT 10.4"""
    student = STUDENT.clone().requires_grad_()
    reverse_kl(student, TEACHER).sum().backward()
    assert student.grad[0].tolist() == pytest.approx([0.098938, -0.093885, -0.005053], abs=1e-6)


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
def test_zero_at_equality_and_blind_to_a_shift_of_logits(divergence):
    assert divergence(STUDENT, STUDENT).item() == 0.0
    torch.testing.assert_close(divergence(STUDENT + 3.0, TEACHER - 5.0), divergence(STUDENT, TEACHER))
