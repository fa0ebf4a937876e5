import dataclasses
import math
import random
from functools import partial

import pytest

from posttrain.evals.annotators import AS_JUDGED, bradley_terry, each_annotator, flip
from posttrain.evals.judge import PAIRINGS
from posttrain.loops.pairs import FILE, check_pairs, judged, make_pairs, pair_report, rule_judge
from posttrain.records import DataError, Pair
from tests.loops.samples import ASKED, made

OTHER = dataclasses.replace(ASKED, id="p2", prompt="What is 4 + 3?")
GROUPS = [
    [*map(made, (140, 100, 160)), *(made(n, status="wrong") for n in (90, 300)), made(500, status="unverified")],
    [made(10, problem=OTHER), made(20, problem=OTHER)],
]


def pairs_of(groups=GROUPS, **changes):
    numbers = {"judge": "shortest", "annotate": AS_JUDGED, "per_problem": 9, "heldout_share": 0.5, "seed": 3} | changes
    return make_pairs(groups, **numbers | {"judge": rule_judge(numbers["judge"])})


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


def plainly(groups, *, judge, per_problem, flip_rate, heldout_share, seed):
    """What the pairs of flips are, draw by draw, written without judges and annotators as objects."""
    rng, rows = random.Random(seed), []
    for group in groups:
        known = [sample for sample in group if sample.verdict.status != "unverified"]
        found = PAIRINGS[judge]([judged(sample) for sample in known])
        found = sorted([(m, known[b], known[w]) for b, w, m in found], key=lambda item: -item[0])
        split = "heldout" if rng.random() < heldout_share else "train"
        for number, (margin, chosen, rejected) in enumerate(found[:per_problem]):
            if flipped := rng.random() < flip_rate:
                chosen, rejected = rejected, chosen
            ids = chosen.rollout.response_ids, rejected.rollout.response_ids
            rows.append((f"{chosen.problem.id}-{number}", -margin if flipped else margin, *ids, split))
    return rows


@pytest.mark.parametrize("judge", ["rule", "shortest"])
def test_the_draws_are_one_per_prompt_and_one_per_pair(judge):
    """Equal parameters give equal pairs, row by row, whatever kinds of noise there are besides."""
    rng = random.Random(0)
    groups = [
        [
            made(
                tokens, status=rng.choice(["correct", "wrong", "unverified"]), mixed=rng.random() < 0.3, problem=problem
            )
            for tokens in rng.sample(range(5, 200), 6)
        ]
        for problem in (dataclasses.replace(ASKED, id=f"q{i}", prompt=f"{i} + 4?") for i in range(60))
    ]
    numbers = {"per_problem": 2, "heldout_share": 0.2, "seed": 17}
    pairs = pairs_of(groups, judge=judge, annotate=partial(flip, rate=0.2), **numbers)
    expected = plainly(groups, judge=judge, flip_rate=0.2, **numbers)
    assert [(p.id, p.margin, p.chosen_ids, p.rejected_ids, p.split) for p in pairs] == expected
    assert 0 < sum(pair.margin < 0 for pair in pairs) < 0.5 * len(pairs)


@pytest.mark.parametrize("annotate", [partial(flip, rate=0.49), partial(bradley_terry, temperature=9.0)])
@pytest.mark.parametrize("judge", ["rule", "shortest"])
def test_noise_flips_pairs_and_a_prompt_is_in_one_split(judge, annotate):
    clean, noisy = pairs_of(judge=judge), pairs_of(judge=judge, annotate=annotate)
    assert [abs(pair.margin) for pair in noisy] == [pair.margin for pair in clean]
    for one, other in zip(clean, noisy, strict=True):
        flipped = other.margin < 0
        assert (one.chosen_ids == other.rejected_ids) is flipped and one.split == other.split
    for problem in ("p1", "p2"):
        assert len({pair.split for pair in clean if pair.problem_id == problem}) == 1


def test_every_annotator_has_a_row():
    pairs = pairs_of(annotate=partial(each_annotator, rates=(0.0, 0.499, 0.0)))
    clean = pairs_of()
    assert [pair.id for pair in pairs[:4]] == ["p1-0-0", "p1-0-1", "p1-0-2", "p1-1-0"]
    assert [pair.id for pair in clean[:2]] == ["p1-0", "p1-1"]
    assert [p.chosen_ids for p in pairs[::3]] == [p.chosen_ids for p in pairs[2::3]] == [p.chosen_ids for p in clean]
    assert len({pair.split for pair in pairs if pair.problem_id == "p1"}) == 1


def test_equal_texts_make_no_pair_and_too_few_prompts_are_an_error():
    same = [[made(n, thinking="so") for n in (10, 20)], [made(30, problem=OTHER)]]
    with pytest.raises(DataError, match="0 of 2 prompts gave a pair"):
        pairs_of(same)
    with pytest.raises(DataError, match="1 of 2 prompts gave a pair, wanted at least 2"):
        pairs_of([GROUPS[0], [made(30, status="wrong", problem=OTHER)]])


def test_a_cut_off_response_is_never_the_better_one_and_an_empty_one_in_no_pair():
    cut = [made(9, status="wrong", finish="length"), made(10), made(20, status="wrong")]
    assert lengths(pairs_of([cut, GROUPS[1]], judge="rule")) == [(10, 20), (10, 9), (10, 20)]
    empty = [dataclasses.replace(made(1, status="wrong"), text="<|im_end|>"), made(10), made(20)]
    assert lengths(pairs_of([empty, GROUPS[1]], judge="rule")) == [(10, 20), (10, 20)]


def text_pair(number: int = 0, **changes) -> Pair:
    pair = Pair(f"p{number}-0", f"p{number}", f"{number} + 4?", "\\boxed{7}", "\\boxed{8}", 1.0, FILE)
    return dataclasses.replace(pair, **changes)


SAMPLED = {"judge": "rule", "prompt_ids": (1,), "chosen_ids": (3, 4), "rejected_ids": (5, 6)}
ENDED = {"chosen": "\\boxed{7}<|im_end|>", "rejected": "\\boxed{8}<|im_end|>"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rejected": "\\boxed{7}"}, "field 'rejected': got the text of 'chosen', wanted another response"),
        ({"rejected": " \\boxed{7}<|im_end|>"}, "field 'rejected': got the text of 'chosen'"),
        ({"chosen": ""}, "field 'chosen': got '', wanted a response that is not empty"),
        ({"rejected": "  <|im_end|>"}, r"field 'rejected': got '  <\|im_end\|>', wanted a response that is not empty"),
        ({"margin": math.nan}, "field 'margin': got nan, wanted a finite number"),
        ({"margin": -math.inf}, "field 'margin': got -inf, wanted a finite number"),
        ({"rejected": "<think>\nfirst 3"}, "field 'rejected': got a response that ends .*first 3', wanted a whole one"),
        ({**SAMPLED, **ENDED, "chosen": "<think>\n3"}, "field 'chosen': got a response that ends .* was cut off"),
    ],
)
def test_a_pair_that_teaches_nothing_is_refused_by_line_and_problem(changes, said):
    with pytest.raises(DataError, match=rf"pairs.jsonl:2: problem 'p1': {said}"):
        check_pairs([text_pair(0), text_pair(1, **changes), text_pair(2)], "pairs.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {**SAMPLED, **ENDED},
        {**SAMPLED, **ENDED, "rejected": "<think>\n3 and so on"},  # the policy's own, judged as what it is
        {**SAMPLED, **ENDED, "chosen": "<think>\n3 and so on", "margin": -2.0},  # chosen by noise
        {**SAMPLED, **ENDED, "chosen": "<think>\nfor ever<|im_end|>"},  # ended, and without an answer
        {"chosen": "<think>\nso\n</think>\n\n\\boxed{7}", "margin": 0.0},
    ],
)
def test_what_a_judge_may_say_is_let_through(changes):
    check_pairs([text_pair(0), text_pair(1, **changes)], "pairs.jsonl")


def test_a_prompt_in_both_splits_is_refused():
    rows = [text_pair(0), text_pair(1), text_pair(0, problem_id="another", split="heldout")]
    said = (
        r"pairs.jsonl:3: problem 'another': field 'split': got 'heldout', and pairs.jsonl:1 has the same prompt in 'tr"
    )
    with pytest.raises(DataError, match=said):
        check_pairs(rows, "pairs.jsonl")


def test_too_few_pairs_are_refused():
    with pytest.raises(DataError, match="prefer: got pairs of 1 prompts, wanted at least 2"):
        check_pairs([text_pair(0), text_pair(0)], "prefer")
    with pytest.raises(DataError, match="prefer: got no pair in split 'train'"):
        check_pairs([text_pair(i, split="heldout") for i in range(3)], "prefer")


@pytest.mark.parametrize("judge", ["rule", "shortest"])
def test_pairs_that_are_made_pass_the_check(judge):
    third = dataclasses.replace(ASKED, id="p3", prompt="3 + 4?")
    ended = [
        [dataclasses.replace(sample, text=sample.text + "<|im_end|>") for sample in group]
        for group in [*GROUPS, [made(tokens, problem=third) for tokens in (5, 9)]]
    ]
    check_pairs(pairs_of(ended, judge=judge, annotate=partial(flip, rate=0.3), heldout_share=0.3), "prefer")
