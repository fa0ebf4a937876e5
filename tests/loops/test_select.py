import pytest

from posttrain.loops.select import CHOICES, distinct, is_right, reasoning
from tests.loops.samples import made

LENGTHS = {"correct": (140, 100, 160), "wrong": (90, 300)}
GROUP = [made(n, status=status) for status, lengths in LENGTHS.items() for n in lengths]


def test_the_shortest_right_one_is_kept():
    """UT 9.6: of right answers of 100, 140 and 160 tokens the one of 100; the wrong one of 90 never."""
    right = [sample for sample in GROUP if is_right(sample)]
    assert [sample.tokens for sample in CHOICES["shortest"](right)] == [100]
    assert [sample.tokens for sample in CHOICES["first"](right)] == [140]
    assert [sample.tokens for sample in CHOICES["all"](right)] == [140, 100, 160]


def test_the_choice_of_nothing_is_nothing_and_the_first_of_equals_wins():
    assert all(choose([]) == [] for choose in CHOICES.values())
    one, other = made(5, thinking="a"), made(5, thinking="b")
    assert CHOICES["shortest"]([one, other]) == [one]
    assert CHOICES["shortest"]([other, one]) == [other]


@pytest.mark.parametrize(
    ("sample", "right"),
    [
        (made(5), True),
        (made(5, status="wrong"), False),
        (made(5, status="unverified"), False),
        (made(5, finish="length"), False),
        (made(5, thinking=""), False),  # no thought: not the form of its mode
    ],
)
def test_what_is_right(sample, right):
    assert is_right(sample) is right


def test_solutions_are_one_when_they_calculate_the_same():
    plain = made(5, thinking="First, 3 + 4 = 7.")
    reworded = made(9, thinking="so we see that 3+4=7, and that is it!")
    other_way = made(5, thinking="4 + 3 = 7")
    no_equation, same_words = made(5, thinking="It is seven."), made(5, thinking="it is  seven")
    assert reasoning(plain) == ("3", "+", "4", "=", "7")
    assert distinct([plain, reworded, other_way, no_equation, same_words]) == [plain, other_way, no_equation]
    assert distinct([reworded, plain]) == [reworded]
