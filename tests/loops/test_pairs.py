import dataclasses

import pytest

from posttrain.loops.pairs import make_pairs, pair_report
from posttrain.records import DataError
from tests.loops.samples import ASKED, made

OTHER = dataclasses.replace(ASKED, id="p2")
GROUPS = [
    [*map(made, (140, 100, 160)), *(made(n, status="wrong") for n in (90, 300)), made(500, status="unverified")],
    [made(10, problem=OTHER), made(20, problem=OTHER)],
]


def pairs_of(groups=GROUPS, **changes):
    numbers = {"judge": "shortest", "per_problem": 9, "flip_rate": 0.0, "heldout_share": 0.5, "seed": 3}
    return make_pairs(groups, **(numbers | changes))


def lengths(pairs):
    return [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]


def test_the_shortest_over_the_long_ones():
    """UT 9.6, the widest margin first; what could not be verified is in no pair."""
    pairs = pairs_of()
    assert lengths(pairs) == [(100, 300), (100, 160), (10, 20)]
    assert [pair.margin for pair in pairs] == pytest.approx([1 - 100 / 300, 1 - 100 / 160, 0.5])
    assert {pair.judge for pair in pairs} == {"shortest"}
    assert pair_report(pairs, problems=2)["chosen_shorter"] == 1.0


def test_the_rule_pairs_what_it_orders():
    """Right over wrong first; among equals the shorter one."""
    assert lengths(pairs_of(judge="rule", per_problem=2)) == [(100, 300), (140, 300), (10, 20)]
    assert lengths(pairs_of(judge="rule", per_problem=20))[-2:] == [(140, 160), (10, 20)]


@pytest.mark.parametrize("judge", ["rule", "shortest"])
def test_noise_flips_pairs_and_a_prompt_is_in_one_split(judge):
    clean, noisy = pairs_of(judge=judge), pairs_of(judge=judge, flip_rate=0.49)
    assert [abs(pair.margin) for pair in noisy] == [pair.margin for pair in clean]
    for one, other in zip(clean, noisy, strict=True):
        flipped = other.margin < 0
        assert (one.chosen_ids == other.rejected_ids) is flipped and one.split == other.split
    for problem in ("p1", "p2"):
        assert len({pair.split for pair in clean if pair.problem_id == problem}) == 1


def test_equal_texts_make_no_pair_and_too_few_prompts_are_an_error():
    same = [[made(n, thinking="so") for n in (10, 20)], [made(30, problem=OTHER)]]
    with pytest.raises(DataError, match="0 of 2 prompts gave a pair"):
        pairs_of(same)
    with pytest.raises(DataError, match="1 of 2 prompts gave a pair, wanted at least 2"):
        pairs_of([GROUPS[0], [made(30, status="wrong", problem=OTHER)]])


def test_what_says_nothing_is_in_no_pair_and_what_broke_off_is_not_chosen():
    """Though the rule would prefer either to longer wrong answers."""
    empty = dataclasses.replace(made(1, status="wrong"), text="<|im_end|>")
    broken = [made(tokens, status="wrong", finish="length") for tokens in (50, 300)]
    whole = [made(tokens, status="wrong") for tokens in (70, 90)]
    groups = [[empty, *broken, *whole], GROUPS[1]]
    assert lengths(pairs_of(groups, judge="rule")) == [(70, 300), (90, 300), (70, 90), (10, 20)]
