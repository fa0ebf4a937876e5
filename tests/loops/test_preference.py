import math

import pytest

from posttrain import config
from posttrain.chat.template import encode_text, render_prompt
from posttrain.loops.preference import pair_ids, run_dpo
from posttrain.loops.scoring import epoch_batches, score
from posttrain.records import Message, Pair
from tests.loops.toy import ENGINE, QUESTIONS, Journal, optimizer, same_weights, start_policy, weights_of

RIGHT, WRONG = ("<think>\nso\n</think>\n\n\\boxed{" + answer + "}<|im_end|>" for answer in "78")


def pairs(copies: int = 3) -> list[Pair]:
    train = [Pair(f"t{i}", f"q{i}", q, RIGHT, WRONG, 1.0, "rule") for i, q in enumerate(QUESTIONS[:3] * copies)]
    return [*train, Pair("h", "q3", QUESTIONS[3], RIGHT, WRONG, 1.0, "rule", split="heldout")]


def section(**changes) -> config.Align:
    base = {
        "method": "dpo", "beta": 0.5, "optimizer": optimizer(0.002).model_dump(), "epochs": 4.0, "batch_pairs": 4,
        "sft_weight": 0.0, "win_problems": 1, "rounds": 1, "round_problems": 4,
    }  # fmt: skip
    return config.Align.model_validate(base | changes, strict=False)


def train(folder, journal, *, tokens=4096, **changes):
    policy = start_policy()
    summary = run_dpo(
        policy,
        pairs(),
        section=section(**changes),
        micro_batch_tokens=tokens,
        engine=ENGINE,
        seed=3,
        log=journal,
        checkpoints=folder,
        save_every=2,
    )
    return policy, summary


def test_the_margin_grows(tmp_path):
    journal = Journal()
    _, summary = train(tmp_path, journal)
    first, last = journal.rows[0][1], journal.rows[-1][1]
    # At the start the policy is the reference: ln 2, and no margin.
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward/margin"] == pytest.approx(0.0, abs=1e-4)
    assert last["reward/margin"] > 1.0 and last["reward/pair_accuracy"] == 1.0
    assert last["reward/margin"] == pytest.approx(last["reward/chosen"] - last["reward/rejected"], rel=1e-4)
    assert summary["heldout_margin"] > 0.5 and summary["heldout_pair_accuracy"] == 1.0
    assert summary["heldout_loss"] < math.log(2)


def test_a_weight_on_likelihood_keeps_the_chosen_likely(tmp_path):
    plain, weighted = Journal(), Journal()
    train(tmp_path / "a", plain)
    train(tmp_path / "b", weighted, sft_weight=5.0)
    assert weighted.rows[-1][1]["train/logprob_chosen"] >= plain.rows[-1][1]["train/logprob_chosen"]


def test_interrupted_is_uninterrupted(tmp_path):
    whole, summary = train(tmp_path / "whole", Journal())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Journal(stop_after=3))
    rest = Journal()
    resumed, resumed_summary = train(tmp_path / "cut", rest)
    assert rest.rows[0][0] == 3
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert summary == resumed_summary


def test_the_size_of_micro_batches_does_not_matter(tmp_path):
    small, large = Journal(), Journal()
    train(tmp_path / "a", small, tokens=100, epochs=0.5)
    train(tmp_path / "b", large, epochs=0.5)
    for name in ("train/loss", "train/grad_norm", "train/logprob_chosen"):
        assert small.rows[0][1][name] == pytest.approx(large.rows[0][1][name], rel=1e-4, abs=1e-6)


def test_text_is_tokenised_only_without_ids():
    tokenizer = start_policy().tokenizer
    pair = pairs()[0]
    (prompt, chosen), _ = pair_ids(tokenizer, pair)
    assert prompt == tuple(render_prompt(tokenizer, [Message("user", pair.prompt)], "think"))
    assert chosen == tuple(encode_text(tokenizer, RIGHT))
    assert chosen[-1] == tokenizer.eos_token_id
    sampled = Pair("x", "q", "q", RIGHT, WRONG, 1.0, "rule", prompt_ids=(5, 6), chosen_ids=(7,), rejected_ids=(8, 9))
    assert pair_ids(tokenizer, sampled) == (((5, 6), (7,)), ((5, 6), (8, 9)))


def test_scores_do_not_depend_on_the_batch():
    policy = start_policy()
    both = [response for pair in pairs() for response in pair_ids(policy.tokenizer, pair)]
    alone = [score(policy.model, [response], micro_batch_tokens=1, temperature=1.0)[0] for response in both]
    together = score(policy.model, both, micro_batch_tokens=10_000, temperature=1.0)
    for response, first, second in zip(both, alone, together, strict=True):
        assert len(first) == len(response[1])
        assert first.tolist() == pytest.approx(second.tolist(), abs=1e-4)


def test_batches_over_epochs():
    batches = epoch_batches(10, size=4, epochs=2.0, seed=0)
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(i for batch in batches for i in batch) == sorted(list(range(10)) * 2)
    assert batches == epoch_batches(10, size=4, epochs=2.0, seed=0) != epoch_batches(10, size=4, epochs=2.0, seed=1)
    assert len(epoch_batches(3, size=8, epochs=0.1, seed=0)) == 1
    assert len(epoch_batches(3, size=8, epochs=0.1, seed=0)[0]) == 3
