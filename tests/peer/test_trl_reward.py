"""The same pairs into TRL's reward trainer and into ours, through a whole model: the same loss and gradient, to 1e-5.

Padding included: TRL lets transformers find the last token of each row, we read it at its position.
"""

import copy
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import RewardTrainer

from posttrain.engine.scalar_head import with_scalar_head
from posttrain.loops.reward_model import make_reward_batches, make_reward_loss
from tests.loops.toy import start_policy
from tests.peer.trl_trainers import one_process
from tests.plain import pad

PROMPT = (1, 40, 50)
PAIRS = [
    (((PROMPT, (60, 61, 2)), (PROMPT, (70, 71, 72, 73, 2))), 0.5),
    (((PROMPT, (80, 2)), (PROMPT, (90, 91, 2))), 0.0),
]


class Rewards(RewardTrainer):
    """Without its set-up."""

    def __init__(self, model, centering: float | None) -> None:
        self.model = model
        self.args, self.accelerator = SimpleNamespace(center_rewards_coefficient=centering), one_process()
        self._metrics, self._total_train_tokens, self._tp_size = {"eval": defaultdict(list)}, 0, 1


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_reward_loss(centering):
    ours = with_scalar_head(start_policy().model, seed=3)
    theirs = copy.deepcopy(ours)
    (batch,) = make_reward_batches(PAIRS, tokens=4096, device=torch.device("cpu"))
    loss, _ = make_reward_loss(len(PAIRS), centering=centering)(ours, batch)
    loss.backward()
    ids, mask = pad([prompt + response for side in (0, 1) for prompt, response in (pair[side] for pair, _ in PAIRS)])
    inputs = {"input_ids": ids, "attention_mask": mask, "margin": torch.tensor([margin for _, margin in PAIRS])}
    expected = Rewards(theirs, centering or None).compute_loss(theirs, inputs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert ours.score.weight.grad.abs().max() > 1e-3
