"""Muon against the singular value decomposition, torch's own Muon, and the parameters it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posttrain.config import ConfigError
from posttrain.engine.optimizers import ClippedMuon, hidden_matrices, orthogonal
from posttrain.engine.scalar_head import with_scalar_head
from tests.engine.conftest import llama_model, micro_model
from tests.engine.training import optimizer, trainer_of

IN_A_LAYER = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def by_svd(matrix: Tensor) -> Tensor:
    """The same iteration on the singular values alone: p(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5, five times."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vh


def test_singular_values_follow_the_polynomial_and_vectors_stay() -> None:
    matrices = [random_matrix(6, 10), random_matrix(10, 6, seed=1), random_matrix(6, 10, seed=2), random_matrix(4, 4)]
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        torch.testing.assert_close(found.double(), by_svd(matrix), atol=2e-5, rtol=0)
        assert torch.linalg.svdvals(found).max() < 1.25


def test_scale_does_not_matter_and_rotation_passes_through() -> None:
    matrix = random_matrix(6, 10)
    turn = torch.linalg.qr(random_matrix(6, 6, seed=3)).Q
    plain, scaled, turned = (orthogonal([m])[0] for m in (matrix, 1000.0 * matrix, turn @ matrix))
    torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned, turn @ plain, atol=1e-5, rtol=0)
    assert orthogonal([torch.zeros(3, 5)])[0].abs().max() == 0.0


def test_steps_are_those_of_torch_up_to_its_bf16() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(24, 16, bias=False)])
            with torch.no_grad():
                self.layers[0].weight.copy_(random_matrix(16, 24))

    ours, theirs = One(), One()
    mine = ClippedMuon(ours, optimizer=optimizer(lr=0.05, weight_decay=0.1, grad_clip=1e9))
    peer = torch.optim.Muon(
        theirs.parameters(), lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    start = ours.layers[0].weight.detach().clone()
    for step in range(4):
        for model, steps in ((ours, mine), (theirs, peer)):
            model.layers[0].weight.grad = random_matrix(16, 24, seed=step + 10)
            steps.step()
    moved, theirs_moved = (m.layers[0].weight.detach() - start for m in (ours, theirs))
    assert float((moved - theirs_moved).norm() / theirs_moved.norm()) < 0.02


def test_only_matrices_inside_layers_are_made_orthogonal() -> None:
    for model in (micro_model(), llama_model(), with_scalar_head(micro_model(), seed=0)):
        chosen = {id(p) for p in hidden_matrices(model)}
        names = [name for name, p in model.named_parameters() if id(p) in chosen]
        assert {name.split(".")[-2] for name in names} == IN_A_LAYER
        assert len(names) == 2 * len(IN_A_LAYER)


@pytest.mark.parametrize(("precision", "zero_stage"), [("bf16", 2), ("fp32", 2)])
def test_partitioned_matrices_are_refused(precision, zero_stage) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.kind: got 'muon' with .*wanted 'adamw'"):
        trainer_of(micro_model(), precision=precision, zero_stage=zero_stage, kind="muon")
