"""The same pairs and logits into TRL's DPO trainer and into our preference losses: the same loss and gradient, to 1e-5.

TRL takes IPO's margin per token, on which our function gives the same; on summed log-probabilities it would not.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer

from posttrain.losses.preference import dpo, ipo, log_ratio_margin, robust_dpo
from tests.loops.tabular import random_table, token_logprobs
from tests.peer.trl_trainers import PeerTable, one_process

PROMPT, BETA, FLIPS = 9, 0.3, 0.1
CHOSEN = [(1, 5, 2), (7, 0, 3, 3, 6)]
REJECTED = [(0, 0, 4, 2, 2, 1), (4,)]
POLICY, REFERENCE = (random_table(seed, tokens=12, actions=8) for seed in (0, 1))


class Scored(PeerTable):
    """Answers as TRL's patched models do: log-probabilities of the labels, and what only its metrics need."""

    def forward(self, input_ids, labels, **unused) -> SimpleNamespace:
        logits_BTA = self.logits_VA[input_ids[:, :-1]]
        wanted_BT = labels[:, 1:] != -100
        labels_BT = labels[:, 1:].clamp(min=0)
        chosen_BT = torch.log_softmax(logits_BTA, -1).gather(-1, labels_BT[..., None])[..., 0]
        zeros_BT = torch.zeros(labels_BT.shape)
        return SimpleNamespace(
            log_probs=chosen_BT * wanted_BT, entropy=zeros_BT, mean_logits=zeros_BT, is_top1=zeros_BT.bool()
        )


class Dpo(DPOTrainer):
    """Without its set-up."""

    def __init__(self, model, reference, loss_type) -> None:
        self.model, self.ref_model, self.beta, self.label_smoothing = model, reference, BETA, FLIPS
        self.loss_types, self.loss_weights, self.f_divergence_type = [loss_type], [1.0], "reverse_kl"
        self.aux_loss_enabled = self.precompute_ref_logps = self.use_weighting = False
        self.ld_alpha, self.accelerator = None, one_process()
        self.args = SimpleNamespace(gradient_checkpointing_kwargs=None)
        self._metrics, self._total_train_tokens, self._tp_size = {"train": defaultdict(list)}, 0, 1


def theirs(loss_type) -> tuple[float, torch.Tensor]:
    rows = [[PROMPT, *response] for response in CHOSEN + REJECTED]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    completion = real.clone()
    completion[:, 0] = 0
    model = Scored(POLICY.float())
    loss = Dpo(model, Scored(REFERENCE.float()), loss_type)._compute_loss(
        model, {"input_ids": ids, "attention_mask": real, "completion_mask": completion}, False
    )
    loss.backward()
    return loss.item(), model.logits_VA.grad


def ours(loss, *, per_token) -> tuple[float, torch.Tensor]:
    point = POLICY.clone().requires_grad_()

    def scores(table, responses) -> torch.Tensor:
        rows = [token_logprobs(table, PROMPT, response) for response in responses]
        return torch.stack([row.mean() if per_token else row.sum() for row in rows])

    policy, reference = ([scores(table, some) for some in (CHOSEN, REJECTED)] for table in (point, REFERENCE))
    value = loss(log_ratio_margin(*policy, *reference)).mean()
    value.backward()
    return value.item(), point.grad.float()


@pytest.mark.parametrize(
    ("loss_type", "loss", "per_token"),
    [
        ("sigmoid", lambda margin: dpo(margin, beta=BETA), False),
        ("sigmoid_norm", lambda margin: dpo(margin, beta=BETA), True),
        ("robust", lambda margin: robust_dpo(margin, beta=BETA, flip_rate=FLIPS), False),
        ("ipo", lambda margin: ipo(margin, beta=BETA), True),
    ],
)
def test_preference_losses(loss_type, loss, per_token):
    found, expected = ours(loss, per_token=per_token), theirs(loss_type)
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert expected[1].abs().max() > 1e-3
