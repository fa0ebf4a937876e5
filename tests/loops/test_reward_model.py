import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain import config
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.loops.preference import pair_ids
from posttrain.loops.reward_model import (
    length_gaps,
    make_score_batches,
    margins,
    pair_quality,
    run_reward_model,
    scores,
)
from tests.loops.test_preference import pairs
from tests.loops.toy import ENGINE, Journal, optimizer, same_weights, start_policy


def train(folder, journal):
    section = config.RewardModel(optimizer=optimizer(0.003), epochs=8.0, batch_pairs=4, centering=0.01)
    return run_reward_model(
        start_policy(),
        pairs(),
        section=section,
        micro_batch_tokens=4096,
        engine=ENGINE,
        seed=3,
        log=journal,
        checkpoints=folder,
        save_every=2,
    )


def test_the_preferred_answer_is_learnt(tmp_path):
    journal = Journal()
    model, quality = train(tmp_path, journal)
    assert journal.rows[0][1]["train/loss"] == pytest.approx(math.log(2), abs=0.2)
    assert journal.rows[-1][1]["reward/pair_accuracy"] == 1.0
    assert quality["heldout"]["accuracy"] == 1.0 and quality["heldout"]["log_loss"] < 0.5
    assert quality["heldout"]["pairs_by_length"] == {"chosen_shorter": 0, "similar_length": 1, "chosen_longer": 0}
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.num_labels == 1
    responses = [pair_ids(start_policy().tokenizer, pair) for pair in pairs()]
    assert margins(loaded, responses, micro_batch_tokens=4096) == margins(model, responses, micro_batch_tokens=4096)


def test_interrupted_is_uninterrupted(tmp_path):
    whole, quality = train(tmp_path / "whole", Journal())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Journal(stop_after=3))
    resumed, resumed_quality = train(tmp_path / "cut", Journal())
    assert same_weights(whole.state_dict(), resumed.state_dict())
    assert quality == resumed_quality


def test_a_new_model_has_the_policys_body_and_a_head_by_seed():
    policy = start_policy()
    first, second = (with_scalar_head(policy.model, seed=seed) for seed in (0, 1))
    body = policy.model.base_model.state_dict()
    assert same_weights(body, first.base_model.state_dict())
    assert not torch.equal(first.score.weight, second.score.weight)
    assert torch.equal(first.score.weight, with_scalar_head(policy.model, seed=0).score.weight)


def test_a_score_depends_neither_on_padding_nor_on_order():
    policy = start_policy()
    model = with_scalar_head(policy.model, seed=0)
    (prompt, short), (_, other) = pair_ids(policy.tokenizer, pairs()[0])
    uneven = [((prompt, short), (prompt, other + other)), ((prompt, other[:3]), (prompt, short[:2]))]
    together = margins(model, uneven, micro_batch_tokens=4096)
    apart = [margins(model, [pair], micro_batch_tokens=1)[0] for pair in uneven]
    assert together == pytest.approx(apart, abs=1e-5)
    assert margins(model, uneven[::-1], micro_batch_tokens=4096) == pytest.approx(together[::-1], abs=1e-6)
    (batch,) = make_score_batches([uneven[1]], tokens=4096, device=torch.device("cpu"))
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([prompt + other[:3]])).last_hidden_state[0, -1]
        expected = float(model.score(hidden))
        assert scores(model, batch)[0].item() == pytest.approx(expected, abs=1e-5)


def test_quality_by_hand():
    """UT 1.2: margins [1, -.5, 0]: accuracy 1/3, ties 1/3."""
    quality = pair_quality([1.0, -0.5, 0.0], [-0.5, 0.05, 0.5])
    assert quality["accuracy"] == pytest.approx(1 / 3)
    assert quality["ties"] == pytest.approx(1 / 3)
    assert quality["mean_margin"] == pytest.approx(0.5 / 3)
    losses = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(0.5)), math.log(2)]
    assert quality["log_loss"] == pytest.approx(sum(losses) / 3)
    assert quality["accuracy_by_length"] == {"chosen_shorter": 1.0, "similar_length": 0.0, "chosen_longer": 0.0}
    # Confidences .731, .622, .5 in bins of their own; right, wrong, wrong.
    confidences = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5)), 0.5]
    assert quality["ece"] == pytest.approx((1 - confidences[0] + confidences[1] + confidences[2]) / 3)


def test_length_gaps():
    response = {n: ((1, 2), tuple(range(n))) for n in (5, 10)}
    assert length_gaps([(response[5], response[10]), (response[10], response[5])]) == [-0.5, 0.5]
    assert length_gaps([(response[5], response[5])]) == [0.0]
