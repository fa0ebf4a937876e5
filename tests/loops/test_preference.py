import math

import pytest
import torch

from posttrain import config
from posttrain.chat.template import encode_text, render_prompt
from posttrain.loops import reference
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.preference import CHOSEN_FALL, judge_pairs, mismatched_responses, run_preference, scored_pairs
from posttrain.loops.preference_methods import METHODS
from posttrain.loops.scoring import epoch_batches, score
from posttrain.losses.preference import kto_baseline
from posttrain.records import Message, Pair
from tests.loops.toy import ENGINE, QUESTIONS, Journal, optimizer, same_weights, start_policy, weights_of

RIGHT, WRONG = ("<think>\nso\n</think>\n\n\\boxed{" + answer + "}<|im_end|>" for answer in "78")
NUMBERS = {
    "dpo": {"beta": 0.5, "sft_weight": 0.0},
    "dpo_norm": {"beta": 5.0, "sft_weight": 0.0},
    "cdpo": {"beta": 0.5, "sft_weight": 0.0, "flip_rate": 0.1},
    "robust_dpo": {"beta": 0.5, "sft_weight": 0.0, "flip_rate": 0.1},
    "ipo": {"beta": 0.1, "sft_weight": 0.0},
    "ipo_norm": {"beta": 0.5, "sft_weight": 0.0},
    "simpo": {"beta": 2.5, "sft_weight": 0.0, "gamma": 1.0},
    "orpo": {"beta": 0.5},
    "kto": {"beta": 0.5, "sft_weight": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0},
}


def pairs(copies: int = 3) -> list[Pair]:
    train = [Pair(f"t{i}", f"q{i}", q, RIGHT, WRONG, 1.0, "rule") for i, q in enumerate(QUESTIONS[:3] * copies)]
    return [*train, Pair("h", "held", QUESTIONS[3], RIGHT, WRONG, 1.0, "rule", split="heldout")]


def section(kind: str = "dpo", **changes) -> config.Align:
    """A number of the method, or a key of the section, changed."""
    method = {"kind": kind} | NUMBERS[kind]
    base = {
        "method": method | {name: changes.pop(name) for name in list(changes) if name in method},
        "optimizer": optimizer(0.002).model_dump(), "epochs": 4.0, "batch_pairs": 4, "win_problems": 1, "rounds": 1,
        "round_problems": 4,
    }  # fmt: skip
    return config.Align.model_validate(base | changes, strict=False)


def train(folder, journal, kind="dpo", *, tokens=4096, notes=None, **changes):
    policy = start_policy()
    summary = run_preference(
        policy,
        pairs(),
        section=section(kind, **changes),
        engine=ENGINE.model_copy(update={"micro_batch_tokens": tokens}),
        seed=3,
        log=journal,
        note=(notes if notes is not None else []).append,
        checkpoints=folder,
        save_every=2,
        source="pairs",
    )
    return policy, summary


def scored(policy, kind, folder):
    """All pairs of the toy as the loop sees them, by split."""
    ids = {name: [pair_ids(policy.tokenizer, p) for p in pairs() if p.split == name] for name in ("train", "heldout")}
    return scored_pairs(
        policy.model, ids, mismatched=METHODS[kind].mismatched, seed=3, file=folder / "reference.json",
        micro_batch_tokens=4096, note=print,
    )  # fmt: skip


def test_the_margin_of_dpo_grows_from_none(tmp_path):
    journal = Journal()
    _, summary = train(tmp_path, journal)
    first, last = journal.rows[0][1], journal.rows[-1][1]
    # At the start the policy is the reference: ln 2, and no margin.
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward/margin"] == pytest.approx(0.0, abs=1e-4)
    assert first["train/chosen_change"] == pytest.approx(0.0, abs=1e-5)
    assert last["reward/margin"] > 1.0 and last["reward/pair_accuracy"] == 1.0
    assert last["reward/margin"] == pytest.approx(last["reward/chosen"] - last["reward/rejected"], rel=1e-4)
    assert summary["heldout_margin"] > 0.5 and summary["heldout_pair_accuracy"] == 1.0
    assert summary["heldout_loss"] < math.log(2)
    assert (summary["train_pairs"], summary["heldout_pairs"]) == (9, 1)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_raises_its_margin_on_pairs_it_has_not_seen(tmp_path, kind):
    start = start_policy()
    numbers = section(kind).method
    before = judge_pairs(
        start.model, scored(start, kind, tmp_path / "before")["heldout"], numbers=numbers, micro_batch_tokens=4096
    )
    journal = Journal()
    _, after = train(tmp_path, journal, kind)
    assert after["heldout_margin"] > before["heldout_margin"] + 0.05
    assert after["heldout_loss"] < before["heldout_loss"]
    assert after["heldout_pair_accuracy"] == 1.0
    assert ("train/baseline" in journal.rows[0][1]) is (kind == "kto")
    if METHODS[kind].reference:
        assert before["heldout_margin"] == pytest.approx(0.0, abs=1e-4)


def test_a_weight_on_likelihood_keeps_the_chosen_likely(tmp_path):
    plain, weighted = Journal(), Journal()
    train(tmp_path / "a", plain)
    train(tmp_path / "b", weighted, sft_weight=5.0)
    assert weighted.rows[-1][1]["train/logprob_chosen"] >= plain.rows[-1][1]["train/logprob_chosen"]


def test_a_fall_of_the_chosen_is_said_once(tmp_path):
    """The toy's pairs share all but a token, so that DPO takes likelihood from both; a weight on it gives it back."""
    quiet, loud, journal = [], [], Journal()
    train(tmp_path / "a", Journal(), notes=quiet, sft_weight=5.0)
    train(tmp_path / "b", journal, notes=loud)
    first = next(step for step, row in journal.rows if row["train/chosen_change"] < -CHOSEN_FALL)
    assert quiet == []
    assert len(loud) == 1 and f"at step {first} the chosen responses are" in loud[0]
    assert "nats per token less likely" in loud[0] and str(CHOSEN_FALL) in loud[0]


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_interrupted_is_uninterrupted(tmp_path, kind, monkeypatch):
    whole, summary = train(tmp_path / "whole", Journal(), kind)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Journal(stop_after=3), kind)
    # The reference is read back, not computed again.
    monkeypatch.setattr(reference, "shared_score", None)
    rest = Journal()
    resumed, resumed_summary = train(tmp_path / "cut", rest, kind)
    assert rest.rows[0][0] == 3
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert summary == resumed_summary


@pytest.mark.parametrize("kind", METHODS)
def test_the_size_of_micro_batches_does_not_matter(tmp_path, kind):
    small, large = Journal(), Journal()
    train(tmp_path / "a", small, kind, tokens=100, epochs=0.5)
    train(tmp_path / "b", large, kind, epochs=0.5)
    for name in ("train/loss", "train/grad_norm", "train/logprob_chosen", "reward/margin"):
        assert small.rows[0][1][name] == pytest.approx(large.rows[0][1][name], rel=1e-4, abs=1e-5)


def test_mismatched_responses_answer_another_prompt():
    asked = [(((1,), (10, i)), ((1,), (20, i))) for i in range(5)] + [(((2,), (30,)), ((2,), (40,)))]
    drawn = mismatched_responses(asked, asked, seed=0)
    assert [prompt for prompt, _ in drawn] == [(1,)] * 10 + [(2,)] * 2
    assert {response for _, response in drawn[:10]} == {(30,), (40,)}
    assert all(response[0] in (10, 20) for _, response in drawn[10:])
    assert drawn == mismatched_responses(asked, asked, seed=0)


def test_the_baseline_of_kto_is_that_of_the_policy_as_it_is(tmp_path):
    """After training, by hand: the mean log-ratio of the mismatched responses, at least 0."""
    trained, _ = train(tmp_path / "run", Journal(), "kto", epochs=2.0)
    given = scored(start_policy(), "kto", tmp_path)["heldout"]
    (pair,) = given
    assert len(pair.mismatched) == 2 and all(prompt == pair.chosen[0] for prompt, _ in pair.mismatched)
    sums = score(trained.model, pair.mismatched, micro_batch_tokens=4096, temperature=1.0)
    ratios = [float(row.sum()) - value for row, value in zip(sums, pair.reference_mismatched, strict=True)]
    after = judge_pairs(trained.model, given, numbers=section("kto").method, micro_batch_tokens=4096)
    z0 = float(kto_baseline(torch.tensor(ratios)))
    up, down = (after[name] - 0.5 * z0 for name in ("heldout_chosen", "heldout_rejected"))
    expected = 0.5 * (1 / (1 + math.exp(up)) + 1 / (1 + math.exp(-down)))
    assert after["heldout_loss"] == pytest.approx(expected, rel=1e-4)


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
