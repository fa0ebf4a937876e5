import dataclasses
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain import config
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import load_reward_model, with_scalar_head
from posttrain.errors import ModelError
from posttrain.evals.rerank import Candidate, rerank
from posttrain.loops.learned import learned_scorer
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.reward_model import (
    length_gap,
    make_reward_batches,
    make_reward_loss,
    margins,
    required_margin,
    run_reward_model,
)
from posttrain.loops.reward_scores import score_responses, scores
from posttrain.loops.rl_value import predict_values, start_value_network
from posttrain.rewards.terms import Group
from posttrain.rewards.total import make_terms, total_rewards
from tests.loops.test_preference import pairs
from tests.loops.toy import ENGINE, PROBLEMS, Journal, objective_of, optimizer, same_weights, start_policy
from tests.rewards.groups import sample


def train(folder, journal, *, margin_scale=0.0):
    section = config.RewardModel(
        optimizer=optimizer(0.003), epochs=8.0, batch_pairs=4, centering=0.01, margin_scale=margin_scale
    )
    return run_reward_model(
        start_policy(),
        pairs(),
        section=section,
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
    (batch,) = make_reward_batches([(uneven[1], 0.0)], tokens=4096, device=torch.device("cpu"))
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([prompt + other[:3]])).last_hidden_state[0, -1]
        expected = float(model.score(hidden))
        assert scores(model, batch.responses)[0].item() == pytest.approx(expected, abs=1e-5)


def test_length_gap():
    response = {n: ((1, 2), tuple(range(n))) for n in (5, 10)}
    assert length_gap((response[5], response[10])) == -0.5
    assert length_gap((response[10], response[5])) == 0.5
    assert length_gap((response[5], response[5])) == 0.0


def test_a_required_margin_is_that_of_the_label():
    """Llama 2's margin, in units of the judge's; that noise flipped a label is not known to whoever trains on it."""
    pair = pairs()[0]
    flipped = dataclasses.replace(pair, margin=-pair.margin)
    assert required_margin(pair, scale=0.5) == required_margin(flipped, scale=0.5) == 0.5
    policy = start_policy()
    model = with_scalar_head(policy.model, seed=0)
    both = [pair_ids(policy.tokenizer, pair) for pair in pairs()[:3]]
    found = margins(model, both, micro_batch_tokens=4096)
    asked = [0.0, 0.5, 2.0]
    expected = sum(math.log1p(math.exp(-(m - a))) for m, a in zip(found, asked, strict=True)) / 3
    for tokens in (1, 4096):  # however the batch is split
        batches = make_reward_batches(list(zip(both, asked, strict=True)), tokens=tokens, device=torch.device("cpu"))
        losses = [make_reward_loss(3, centering=0.0)(model, batch)[0].item() for batch in batches]
        assert sum(losses) == pytest.approx(expected, rel=1e-5)


def test_a_margin_moves_the_rewards_apart(tmp_path):
    """The first loss is that of no difference, softplus(3); the last difference is wider."""
    journal = Journal()
    _, plain = train(tmp_path / "plain", Journal())
    _, wide = train(tmp_path / "wide", journal, margin_scale=3.0)
    assert journal.rows[0][1]["train/loss"] == pytest.approx(math.log1p(math.exp(3.0)), abs=0.3)
    assert wide["heldout"]["mean_margin"] > plain["heldout"]["mean_margin"] + 0.1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of the stage, in its folder."""
    folder = tmp_path_factory.mktemp("reward_model")
    model, _ = train(folder / "work", Journal())
    save_policy(Policy(model, start_policy().tokenizer), folder / "model")
    return folder / "model"


def test_the_stages_model_is_a_reward_term(saved):
    """Through make_terms and total_rewards, as the RL loop has it: right answers are paid more than wrong ones."""
    tokenizer = start_policy().tokenizer
    model = load_reward_model(saved, tokenizer, precision="fp32")
    (prompt, right), (_, wrong) = pair_ids(tokenizer, pairs()[-1])
    group = Group(PROBLEMS[3], "think", 64, [sample(ids=right), sample(ids=wrong)], prompt_ids=prompt)
    terms = make_terms(["learned"], scorers={"learned": learned_scorer(model, micro_batch_tokens=4096)})
    (((paid, unpaid), _),) = total_rewards([group], {"learned": 1.0}, terms)
    assert paid > unpaid


def test_the_stages_model_is_a_reranker(saved):
    """The best of a block by its score is right although the majority is not."""
    tokenizer = start_policy().tokenizer
    model = load_reward_model(saved, tokenizer, precision="fp32")
    right, wrong = pair_ids(tokenizer, pairs()[-1])
    rewards = score_responses(model, [wrong, right, wrong], micro_batch_tokens=4096)
    block = [
        Candidate(answer, answer == "7", {"learned": reward})
        for answer, reward in zip(("8", "7", "8"), rewards, strict=True)
    ]
    table = rerank([block], scores=["learned"], at=[3], draws=10, seed=0)
    assert table["best_learned"][3].accuracy.value == 1.0
    assert table["majority"][3].accuracy.value == 0.0


def test_the_stages_model_is_where_a_value_network_starts(saved, tmp_path):
    """Weight for weight and trainable; the value of what comes behind a response is then its reward."""
    policy = start_policy()
    value = objective_of("ppo").baseline
    network = start_value_network(
        policy, value.model_copy(update={"reward_model": str(saved)}), precision="fp32", seed=0
    )
    model = load_reward_model(saved, policy.tokenizer, precision="fp32")
    assert same_weights(model.state_dict(), network.state_dict())
    assert all(parameter.requires_grad for parameter in network.parameters())
    prompt, response = pair_ids(policy.tokenizer, pairs()[0])[0]
    (values,) = predict_values(network, [(prompt, (*response, 2))], micro_batch_tokens=4096)
    assert values[-1].item() == pytest.approx(
        score_responses(model, [(prompt, response)], micro_batch_tokens=4096)[0], abs=1e-5
    )
    assert same_weights(
        start_value_network(policy, value, precision="fp32", seed=3).state_dict(),
        with_scalar_head(policy.model, seed=3).state_dict(),
    )
    absent = value.model_copy(update={"reward_model": str(tmp_path / "absent")})
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        start_value_network(policy, absent, precision="fp32", seed=0)
