import dataclasses

import pytest
import torch

from posttrain.engine.scalar_head import with_scalar_head
from posttrain.loops.rl_step import Counts, make_micro_batches, token_ids
from posttrain.loops.rl_value import make_value_loss, predict_values
from posttrain.losses.reduce import Denominators
from tests.loops.test_rl_step import POLICY, trajectories

CRITIC = with_scalar_head(POLICY.model, seed=3)


def test_a_value_is_read_before_its_token():
    """Hand-made: the score head on the hidden state of the position before; a token changes only later values."""
    items = [token_ids(t.rollout) for t in trajectories()]
    values = predict_values(CRITIC, items, micro_batch_tokens=20)
    for (prompt, response), got in zip(items, values, strict=True):
        with torch.no_grad():
            hidden = CRITIC.model(torch.tensor([prompt + response])).last_hidden_state
            wanted = CRITIC.score(hidden)[0, len(prompt) - 1 : -1, 0]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    prompt, response = items[1]
    changed = (*response[:3], response[3] + 1, *response[4:])
    (other,) = predict_values(CRITIC, [(prompt, changed)], micro_batch_tokens=4096)
    torch.testing.assert_close(other[:4], values[1][:4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other[4:], values[1][4:])


def test_the_loss_is_a_mean_over_tokens_however_the_batch_is_split():
    made = trajectories()
    values = predict_values(CRITIC, [token_ids(t.rollout) for t in made], micro_batch_tokens=4096)
    items = [dataclasses.replace(t, values=v, returns=v + 2.0) for t, v in zip(made, values, strict=True)]
    counts = Counts(Denominators(sequences=5, tokens=21, max_tokens=24), trained_tokens=21)
    loss_fn = make_value_loss(counts, clip=0.2)
    for tokens in (1, 20, 4096):
        CRITIC.zero_grad()
        total = 0.0
        for batch in make_micro_batches(items, tokens=tokens, device=torch.device("cpu")):
            loss, metrics = loss_fn(CRITIC, batch)
            loss.backward()
            total += loss.item()
            assert metrics["train/value_clip_fraction"] == 0.0
        # Every token is 2 from its return.
        assert total == pytest.approx(0.5 * 2.0**2, rel=1e-5)
        # d/dV of the mean is -2 everywhere, so the head's gradient is -2 times the mean hidden state.
        if tokens == 1:
            first = CRITIC.score.weight.grad.clone()
        torch.testing.assert_close(CRITIC.score.weight.grad, first, rtol=1e-3, atol=1e-5)
