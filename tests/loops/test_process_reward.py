import math

import pytest
import torch

from posttrain.engine.scalar_head import with_scalar_head
from posttrain.loops.process_reward import (
    LabelledResponse,
    checker_scorer,
    make_step_batches,
    make_step_loss,
    prm_scorer,
    run_process_reward,
    step_logits,
    step_probabilities,
)
from posttrain.loops.step_labels import LABELS, StepCount, count_completions, join
from posttrain.records import Rollout
from posttrain.rewards.steps import AGGREGATIONS, split_steps
from tests.loops.toy import ENGINE, Journal, optimizer
from tests.loops.worked import IDS, TOKENIZER, TOKENS, Scripted, micro_policy, worked_samples

POLICY = micro_policy()
SAMPLES = worked_samples()


def counts(completions=64, seed=0, samples=SAMPLES, generation=TOKENS):
    return count_completions(Scripted(), TOKENIZER, samples, completions=completions, generation=generation, seed=seed)


def labelled(kind):
    return [
        LabelledResponse(
            (sample.rollout.prompt_ids, sample.rollout.response_ids),
            tuple(count.end for count in row),
            tuple(LABELS[kind](count) for count in row),
        )
        for sample, row in zip(SAMPLES, counts(), strict=True)
    ]


def train(examples, *, micro_batch_tokens=4096, epochs=16.0, journal=None):
    return run_process_reward(
        POLICY,
        examples,
        optimizer=optimizer(0.003),
        epochs=epochs,
        batch_responses=8,
        engine=ENGINE.model_copy(update={"micro_batch_tokens": micro_batch_tokens}),
        seed=3,
        log=journal or Journal(),
    )


def test_labels_by_hand():
    """UT 13.1: 3 of 8 completions are right: soft .375, hard 1."""
    assert {name: label(StepCount(5, 3, 8)) for name, label in LABELS.items()} == {"soft": 0.375, "hard": 1.0}
    assert {name: label(StepCount(5, 0, 8)) for name, label in LABELS.items()} == {"soft": 0.0, "hard": 0.0}


def test_completions_find_the_value_of_every_prefix():
    """Of the two ways that begin right one ends right; behind the second step nothing is open any more."""
    values = {"right": [0.5, 1, 1, 1], "late slip": [0.5, 0, 0, 0], "early slip": [0, 0, 0, 0]}
    assert {sample.rollout.response_ids for sample in SAMPLES} == set(IDS.values())
    for sample, row in zip(SAMPLES, counts(), strict=True):
        steps = split_steps(TOKENIZER, sample.rollout.response_ids)
        assert [count.end for count in row] == [step.end for step in steps]
        assert row[-1] == StepCount(sample.tokens - 1, int(sample.correct), 1)
        assert all(count.tried == 64 for count in row[:-1])
        (way,) = [name for name, ids in IDS.items() if ids == sample.rollout.response_ids]
        assert [LABELS["soft"](count) for count in row] == pytest.approx(values[way], abs=0.2)
        assert [LABELS["hard"](count) for count in row] == [float(value > 0) for value in values[way]]


def test_completions_are_those_of_the_seed():
    assert counts(completions=4, seed=5) == counts(completions=4, seed=5) != counts(completions=4, seed=6)


def test_a_completion_that_would_have_been_cut_off_is_wrong():
    right = next(sample for sample in SAMPLES if sample.correct)
    enough, short = (TOKENS.model_copy(update={"max_new_tokens": right.tokens - less}) for less in (0, 3))
    for generation, expected in ((enough, 4), (short, 0)):
        (row,) = counts(completions=4, samples=[right], generation=generation)
        assert (row[-2].right, row[-2].tried) == (expected, 4)


def test_join_by_hand():
    first = Rollout("p", (1,), (2, 3, 4), (0.2, 0.3, 0.4), "stop", (0, 0, 0))
    further = Rollout("p", (1, 2, 3), (5, 6), (0.5, 0.6), "stop", (1, 1))
    assert join(first, 2, further, limit=9) == Rollout(
        "p", (1,), (2, 3, 5, 6), (0.2, 0.3, 0.5, 0.6), "stop", (0, 0, 1, 1)
    )
    cut = join(first, 2, further, limit=3)
    assert (cut.response_ids, cut.finish) == ((2, 3, 5), "length")


def test_the_loss_is_cross_entropy_at_the_steps_alone_by_hand():
    model = with_scalar_head(POLICY.model, seed=0)
    (batch,) = make_step_batches(labelled("soft")[:3], tokens=10**6, device=torch.device("cpu"))
    logits = step_logits(model, batch).detach()
    expected = sum(
        -y * math.log(1 / (1 + math.exp(-x))) - (1 - y) * math.log(1 / (1 + math.exp(x)))
        for x, y in zip(logits.tolist(), batch.labels_N.tolist(), strict=True)
    )
    loss, metrics = make_step_loss(len(logits))(model, batch)
    assert loss.item() == pytest.approx(expected / len(logits), rel=1e-5)
    assert metrics["reward/step_label"].item() == pytest.approx(batch.labels_N.mean().item())
    # A token behind the last step's end changes nothing; the head reads the body at the step's own token.
    example = labelled("soft")[0]
    row = [*example.response[0], *example.response[1][: example.ends[0] + 1]]
    with torch.no_grad():
        alone = float(model.score(model.base_model(torch.tensor([row])).last_hidden_state[0, -1]))
    assert step_probabilities(model, [example], micro_batch_tokens=4096)[0][0] == pytest.approx(
        1 / (1 + math.exp(-alone)), abs=1e-5
    )


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_the_model_learns_the_labels(kind):
    journal = Journal()
    examples = labelled(kind)
    model = train(examples, journal=journal)
    assert journal.rows[-1][1]["train/loss"] < 0.6 * journal.rows[0][1]["train/loss"]
    for sample, row in zip(SAMPLES, prm_scorer(model, TOKENIZER, micro_batch_tokens=4096)(SAMPLES), strict=True):
        assert (AGGREGATIONS["last"]([step.reward for step in row]) > 0.5) is sample.correct


def test_micro_batches_change_nothing():
    examples = labelled("soft")
    whole, parts = (train(examples, micro_batch_tokens=tokens, epochs=2.0) for tokens in (10**6, 1))
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, parts.state_dict()[name], atol=1e-4), name
    together, apart = (step_probabilities(whole, examples, micro_batch_tokens=tokens) for tokens in (10**6, 1))
    for first, second in zip(together, apart, strict=True):
        assert first == pytest.approx(second, abs=1e-5)


def test_both_scorers_give_every_step_a_reward_at_its_end():
    model = with_scalar_head(POLICY.model, seed=0)
    for score in (checker_scorer(TOKENIZER), prm_scorer(model, TOKENIZER, micro_batch_tokens=4096)):
        for sample, row in zip(SAMPLES, score(SAMPLES), strict=True):
            ends = [step.end for step in split_steps(TOKENIZER, sample.rollout.response_ids)]
            assert [step.end for step in row] == ends
            assert all(0.0 <= step.reward <= 1.0 for step in row)
    checked = checker_scorer(TOKENIZER)(SAMPLES)
    for sample, row in zip(SAMPLES, checked, strict=True):
        assert (row[-1].reward == 1.0) <= sample.correct
