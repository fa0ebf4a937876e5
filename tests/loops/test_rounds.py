import itertools

import pytest
import torch

from posttrain.evals.annotators import AS_JUDGED
from posttrain.loops.pairs import make_pairs, rule_judge
from posttrain.loops.preference import run_preference
from posttrain.loops.preference_methods import METHODS
from posttrain.loops.rounds import run_rounds
from posttrain.loops.sample import sample_policy
from posttrain.system import System
from tests.loops.test_preference import pairs, section
from tests.loops.toy import ENGINE, GENERATION, PROBLEMS, Journal, same_weights, start_policy, weights_of


def learn(folder, *, kind: str = "dpo", stop_in: int | None = None, rounds: int = 3):
    """Rounds of a preference method on the toy policy's own answers; interrupted within round `stop_in`."""
    policy = start_policy()
    seen: list[tuple[int, torch.Tensor]] = []

    def fresh(number: int):
        seen.append((number, next(iter(weights_of(policy).values()))))
        groups = sample_policy(
            policy, PROBLEMS, mode="think", samples=8, generation=GENERATION, seed=number, engine=ENGINE,
            machine=System(),
        )  # fmt: skip
        return make_pairs(
            groups, judge=rule_judge("rule"), annotate=AS_JUDGED, per_problem=4, heldout_share=0.0, seed=number
        )

    def train(given, number: int, done: int):
        return run_preference(
            policy, given, section=section(kind, epochs=1.0), engine=ENGINE, seed=number,
            log=Journal(stop_after=1 if number == stop_in else None), note=print, source="pairs",
            checkpoints=folder / f"round-{number}", save_every=1,
        )  # fmt: skip

    summaries = run_rounds(policy, pairs(), rounds=rounds, fresh=fresh, train=train, checkpoints=folder / "rounds")
    return policy, summaries, seen


def test_each_further_round_samples_from_the_policy_just_trained(tmp_path):
    start = next(iter(weights_of(start_policy()).values()))
    policy, summaries, seen = learn(tmp_path)
    assert [number for number, _ in seen] == [1, 2]
    weights = [start, *(tensor for _, tensor in seen), next(iter(weights_of(policy).values()))]
    assert all(not torch.equal(first, second) for first, second in itertools.pairwise(weights))
    assert len(summaries) == 3 and all(summary["steps"] >= 1 for summary in summaries)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_goes_on_with_its_own_pairs(tmp_path, kind):
    _, summaries, seen = learn(tmp_path, kind=kind, rounds=2)
    assert [number for number, _ in seen] == [1] and len(summaries) == 2
    assert all(summary["steps"] >= 1 for summary in summaries)


def test_interrupted_in_a_later_round_is_uninterrupted(tmp_path):
    whole, summaries, _ = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_in=1)
    resumed, again, seen = learn(tmp_path / "cut")
    assert [number for number, _ in seen] == [1, 2]  # round 0 is not done again
    assert again == summaries
    assert same_weights(weights_of(whole), weights_of(resumed))


def test_one_round_is_the_off_policy_method(tmp_path):
    policy, summaries, seen = learn(tmp_path, rounds=1)
    alone = start_policy()
    summary = run_preference(
        alone, pairs(), section=section(epochs=1.0), engine=ENGINE, seed=0, log=Journal(), note=print, source="pairs",
        checkpoints=tmp_path / "alone", save_every=50,
    )  # fmt: skip
    assert seen == [] and summaries == [summary]
    assert same_weights(weights_of(policy), weights_of(alone))
