"""The same pairs and logits into TRL's trainers and into our preference losses: the same loss and gradient, to 1e-5.

Differences, allowed for here: TRL takes IPO's margin per token, as our ipo_norm does (our ipo takes summed ones, and
gives another loss); its ORPO averages the likelihood over the tokens of a batch, prompt included, where ours averages
over responses: one pair, and a prompt of one token, make them equal. Its KTO mismatches within the batch.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from posttrain.losses.preference import (
    dpo,
    dpo_norm,
    ipo,
    ipo_norm,
    kto,
    kto_baseline,
    log_ratio_margin,
    orpo,
    robust_dpo,
    simpo,
)
from tests.loops.tabular import random_table, token_logprobs
from tests.peer.trl_trainers import PeerTable, one_process

PROMPT, OTHER_PROMPT, BETA, FLIPS, GAMMA = 9, 10, 0.3, 0.1, 0.4
WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
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


class Kto(KTOTrainer):
    """Without its set-up."""

    def __init__(self, model, reference) -> None:
        self.model, self.ref_model, self.beta, self.loss_type = model, reference, BETA, "kto"
        self.desirable_weight, self.undesirable_weight = WEIGHTS.values()
        self.calculate_KL, self.precompute_ref_logps, self.aux_loss_enabled = True, False, False
        self.accelerator, self.args = one_process(), SimpleNamespace(gradient_checkpointing_kwargs=None)
        self._metrics, self._total_train_tokens, self._tp_size = {"train": defaultdict(list)}, 0, 1


class WithLogits(PeerTable):
    """Answers as a plain model does."""

    def forward(self, input_ids, **unused) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits_VA[input_ids])


class Orpo(ORPOTrainer):
    """Without its set-up."""

    def __init__(self) -> None:
        self.beta, self.padding_value, self.is_encoder_decoder, self.aux_loss_enabled = BETA, 0, False, False
        self.accelerator = one_process()


class Cpo(CPOTrainer):
    """Without its set-up; SimPO is one of its losses."""

    def __init__(self) -> None:
        self.loss_type, self.beta, self.simpo_gamma = "simpo", BETA, GAMMA
        self.cpo_alpha = self.alpha = self.label_smoothing = 0.0
        self.pad_token_id, self.is_encoder_decoder, self.aux_loss_enabled = 0, False, False
        self.accelerator = one_process()


def padded(prompts, responses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, 1 on real tokens, 1 on those of the responses."""
    rows = [[prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    completion = real.clone()
    completion[:, 0] = 0
    return ids, real, completion


def their_dpo(loss_type) -> tuple[float, torch.Tensor]:
    ids, real, completion = padded([PROMPT] * 4, CHOSEN + REJECTED)
    model = Scored(POLICY.float())
    loss = Dpo(model, Scored(REFERENCE.float()), loss_type)._compute_loss(
        model, {"input_ids": ids, "attention_mask": real, "completion_mask": completion}, False
    )
    loss.backward()
    return loss.item(), model.logits_VA.grad


def their_unreferenced(trainer, chosen, rejected) -> tuple[float, torch.Tensor]:
    batch = {}
    for name, responses in (("chosen", chosen), ("rejected", rejected)):
        ids, real, completion = padded([PROMPT] * len(responses), responses)
        labels = ids.masked_fill(completion == 0, -100)
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": real, f"{name}_labels": labels}
    model = WithLogits(POLICY.float())
    loss, _ = trainer.get_batch_loss_metrics(model, batch)
    loss.backward()
    return loss.item(), model.logits_VA.grad


def scores(table, responses, *, per_token, prompts=None) -> torch.Tensor:
    prompts = prompts or [PROMPT] * len(responses)
    rows = [token_logprobs(table, prompt, r) for prompt, r in zip(prompts, responses, strict=True)]
    return torch.stack([row.mean() if per_token else row.sum() for row in rows])


def our_dpo(loss, *, per_token) -> tuple[float, torch.Tensor]:
    point = POLICY.clone().requires_grad_()
    policy, reference = (
        [scores(table, some, per_token=per_token) for some in (CHOSEN, REJECTED)] for table in (point, REFERENCE)
    )
    value = loss(log_ratio_margin(*policy, *reference)).mean()
    value.backward()
    return value.item(), point.grad.float()


def our_unreferenced(loss, chosen, rejected) -> tuple[float, torch.Tensor]:
    point = POLICY.clone().requires_grad_()
    value = loss(*(scores(point, some, per_token=True) for some in (chosen, rejected))).mean()
    value.backward()
    return value.item(), point.grad.float()


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert expected[1].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("loss_type", "loss", "per_token"),
    [
        ("sigmoid", lambda margin: dpo(margin, beta=BETA), False),
        ("sigmoid_norm", lambda margin: dpo_norm(margin, beta=BETA), True),
        ("robust", lambda margin: robust_dpo(margin, beta=BETA, flip_rate=FLIPS), False),
        ("ipo", lambda margin: ipo_norm(margin, beta=BETA), True),
    ],
)
def test_losses_of_a_margin(loss_type, loss, per_token):
    assert_equal(our_dpo(loss, per_token=per_token), their_dpo(loss_type))


def test_the_other_ipo_is_another_loss():
    assert abs(our_dpo(lambda margin: ipo(margin, beta=BETA), per_token=False)[0] - their_dpo("ipo")[0]) > 1.0


@pytest.mark.parametrize("number", [0, 1])
def test_orpo(number):
    pair = CHOSEN[number : number + 1], REJECTED[number : number + 1]
    assert_equal(our_unreferenced(lambda *a: orpo(*a, beta=BETA), *pair), their_unreferenced(Orpo(), *pair))


def test_simpo():
    ours = our_unreferenced(lambda *a: simpo(*a, beta=BETA, gamma=GAMMA), CHOSEN, REJECTED)
    assert_equal(ours, their_unreferenced(Cpo(), CHOSEN, REJECTED))


@pytest.mark.parametrize("swapped", [False, True])
def test_kto(swapped):
    """One way round the baseline is positive; the other way it is 0."""
    tables = (REFERENCE, POLICY) if swapped else (POLICY, REFERENCE)
    prompts, responses = [PROMPT, OTHER_PROMPT] * 2, CHOSEN + REJECTED
    mismatched = [responses[i] for i in (1, 0, 3, 2)]
    ids, real, completion = padded(prompts, responses)
    kl_ids, kl_real, kl_completion = padded(prompts, mismatched)
    desirable = torch.tensor([True, True, False, False])
    batch = {
        "input_ids": ids, "attention_mask": real, "completion_mask": completion, "label": desirable,
        "KL_input_ids": kl_ids, "KL_attention_mask": kl_real, "KL_completion_mask": kl_completion,
    }  # fmt: skip
    model = Scored(tables[0].float())
    loss = Kto(model, Scored(tables[1].float()))._compute_loss(model, batch, False)
    loss.backward()

    point = tables[0].clone().requires_grad_()
    ratios, others = (
        scores(point, some, per_token=False, prompts=prompts)
        - scores(tables[1], some, per_token=False, prompts=prompts)
        for some in (responses, mismatched)
    )
    baseline = kto_baseline(others)
    assert others.mean().abs() > 0.1 and baseline.item() == max(0.0, others.mean().item())
    value = kto(ratios, desirable, baseline, beta=BETA, **WEIGHTS).mean()
    value.backward()
    assert_equal((value.item(), point.grad.float()), (loss.item(), model.logits_VA.grad))
