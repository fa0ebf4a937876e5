import json

import pytest

from posttrain.errors import StageError
from posttrain.rl.sampling import PromptSampler, priorities, smoothed

RATES = [0.1, 0.9, 0.5, 0.7, 0.3, None]


def sampler(kind="uniform", rates=RATES, steps=4, seed=0):
    return PromptSampler(kind, rates, curriculum_steps=steps, seed=seed)


def test_priorities():
    """UT 9.4"""
    assert priorities([0.9, 0.5, 0.1]) == pytest.approx([0.066667, 0.333333, 0.6], abs=1e-6)
    assert priorities([1.0, 1.0]) == [0.5, 0.5]
    assert smoothed(0, 0) == 0.5
    assert smoothed(3, 4) == pytest.approx(4 / 6)


@pytest.mark.parametrize("kind", ["uniform", "curriculum", "prioritised"])
def test_draws_are_distinct_and_reproducible(kind):
    first, second = sampler(kind), sampler(kind)
    for step in range(6):
        drawn = first.draw(3, step=step)
        assert len(set(drawn)) == 3
        assert drawn == second.draw(3, step=step)
    assert sampler(kind, seed=1).draw(3, step=9) != sampler(kind, seed=2).draw(3, step=9)


def test_the_curriculum_opens_from_easy_to_hard():
    order = [1, 3, 2, 4, 0, 5]  # by pass rate, falling; unknown counts as hardest
    for step, opened in [(0, 2), (1, 3), (2, 5), (3, 6), (99, 6)]:
        seen = {index for _ in range(200) for index in sampler("curriculum", seed=_).draw(1, step=step)}
        assert seen == set(order[:opened]), step
    assert set(sampler("curriculum").draw(4, step=0)) == set(order[:4])
    assert len(set(sampler("curriculum", steps=0).draw(6, step=0))) == 6


def test_prioritised_prefers_what_fails():
    uniform, prioritised = [0, 0], [0, 0]
    for kind, counts in (("uniform", uniform), ("prioritised", prioritised)):
        drawing = sampler(kind, [0.5, 0.5])
        drawing.update(0, solved=98, seen=98)
        for _ in range(2000):
            counts[drawing.draw(1, step=0)[0]] += 1
    # Weights .01 and .5.
    assert prioritised[0] / 2000 == pytest.approx(0.01 / 0.51, abs=0.01)
    assert uniform[0] / 2000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", ["uniform", "curriculum", "prioritised"])
def test_a_resumed_sampler_goes_on_as_if_never_stopped(kind):
    first = sampler(kind)
    first.draw(3, step=0)
    first.update(1, solved=2, seen=4)
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler(kind, seed=99)
    second.load_state_dict(state)
    for step in range(1, 5):
        assert first.draw(3, step=step) == second.draw(3, step=step)
    assert second.solved[1] == 2


def test_too_few_problems_are_named():
    with pytest.raises(StageError, match="got 7, wanted at most the 6"):
        sampler().draw(7, step=0)
