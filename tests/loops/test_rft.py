import pytest
import torch

from posttrain.errors import StageError
from posttrain.loops.rft import keep_right, run_rft, trained_on
from posttrain.loops.sample import sample_problems
from posttrain.loops.select import is_right
from posttrain.records import Problem
from posttrain.rl.advantages import BASELINES, SCALES, advantages
from tests.loops.samples import made
from tests.loops.toy import (
    ENGINE,
    GENERATION,
    PROBLEMS,
    Journal,
    optimizer,
    same_weights,
    sampler_of,
    start_policy,
    weights_of,
)


def train(folder, *, journal=None, problems=PROBLEMS, policy=None, rollouts=None, **changes):
    policy = policy or start_policy()
    numbers = {
        "samples": 8,
        "max_per_problem": 4,
        "epochs": 6.0,
        "batch_tokens": 64,
        "sequence_length": 64,
        "optimizer": optimizer(0.003),
        "generation": GENERATION,
        "seed": 5,
        "save_every": 2,
    } | changes
    summary = run_rft(
        policy,
        problems,
        rollouts=rollouts or sampler_of(policy),
        engine=ENGINE,
        log=journal or Journal(),
        checkpoints=folder,
        **numbers,
    )
    return policy, summary


def test_weights_of_the_samples_against_those_of_grpo():
    """UT 6: mixed, all wrong and all right groups; RFT pushes what is right, GRPO what is better than its group."""
    for rewards, rft, grpo in (
        ([1, 0, 0, 1], [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        ([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]),
    ):
        group = [made(3, status="correct" if right else "wrong") for right in rewards]
        assert [float(is_right(sample)) for sample in group] == rft
        rewards_PG = torch.tensor([rewards], dtype=torch.float64)
        valid_PG = torch.ones(1, 4, dtype=torch.bool)
        ours = advantages(rewards_PG, valid_PG, baseline=BASELINES["group_mean"], scale=SCALES["none"])
        assert ours[0].tolist() == grpo


def test_what_is_kept():
    """By hand: two prompts of four samples; the wrong ones, the repeated way and the one above the cap go."""
    groups = [
        [
            made(4, thinking="3 + 4 = 7"),
            made(9, thinking="So 3 + 4 = 7!"),
            made(5, thinking="4 + 3 = 7"),
            made(6, status="wrong"),
        ],
        [made(4, status="wrong"), made(5, status="wrong"), made(6, status="unverified"), made(7, finish="length")],
    ]
    kept, counts = keep_right(groups, max_per_problem=4)
    assert [sample.tokens for sample in kept] == [4, 5]
    assert counts == {"prompts": 2, "sampled": 8, "right": 3, "distinct": 2, "kept": 2, "prompts_with_kept": 1}
    kept, counts = keep_right(groups, max_per_problem=1)
    assert [sample.tokens for sample in kept] == [4] and counts["kept"] == 1


def test_the_sampled_ids_are_trained_on_and_not_the_prompt():
    assert trained_on(made(3)) == ([1, 2, 3, 4, 5], [0, 0, 1, 1, 1])


def test_the_policy_learns_what_it_got_right(tmp_path):
    policy = start_policy()
    rollouts = sampler_of(policy)
    _, summary = train(tmp_path, policy=policy, rollouts=rollouts)
    assert 0 < summary["right"] < summary["sampled"] == 32
    assert summary["kept"] == summary["examples"] <= 4 * 4
    assert rollouts.version == 1
    after = sample_problems(
        rollouts, policy.tokenizer, PROBLEMS, mode="think", samples=16, generation=GENERATION, seed=1
    )
    assert sum(s.correct for group in after for s in group) / 64 > 0.8 > summary["right"] / summary["sampled"]


def test_interrupted_is_uninterrupted(tmp_path):
    whole, summary = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", journal=Journal(stop_after=3))
    rest = Journal()
    resumed, resumed_summary = train(tmp_path / "cut", journal=rest)
    assert rest.rows[0][0] == 3
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert summary == resumed_summary


def test_nothing_right_is_an_error(tmp_path):
    impossible = [Problem(p.id, p.prompt, "9", "exact", "toy", "toy") for p in PROBLEMS]
    with pytest.raises(StageError, match="none of 32 samples is right and well-formed"):
        train(tmp_path, problems=impossible)
