from __future__ import annotations

import pytest

from posttrain.curation.normalise import arithmetic, boilerplate, ngrams, normalise, shuffled, words, words_and_ends
from tests.curation.builders import problem


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("  a\u00a0b \r\nc\t\r\n", "a b\nc"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("\ufeffzero\u200bwidth\x00", "zerowidth"),
        ("# .  #\n  ##", "# .  #\n  ##"),
        ("x\u00b2 + 1", "x\u00b2 + 1"),
    ],
)
def test_normalise_changes_only_what_no_reader_sees(raw: str, wanted: str) -> None:
    assert normalise(raw) == wanted
    assert normalise(normalise(raw)) == wanted


def test_words_drop_case_spacing_and_prose_marks_but_no_number_or_operator() -> None:
    assert words("What is 4+3 - 2.5?") == ("what", "is", "4", "+", "3", "-", "2.5")
    assert words("WHAT is, 4 + 3 \u2212 2.5") == words("What is 4+3 - 2.5?")
    assert words("well-known fact") == ("well-known", "fact")
    assert words("\u4e09\u8f66") == ("\u4e09", "\u8f66")


def test_drawings_count_with_their_spaces() -> None:
    assert words("Count:\n####\n#  #") != words("Count:\n####\n# #")


def test_arithmetic_keeps_numbers_operators_and_brackets_in_order() -> None:
    assert arithmetic(words("Calculate -( 5 + 3 ) * 2.")) == ("-", "(", "5", "+", "3", ")", "*", "2")
    assert arithmetic(words("no numbers here")) == ()


def test_sentence_ends_are_the_places_before_a_mark() -> None:
    tokens, ends = words_and_ends("Why so? Take 3.5 of 4.")
    assert tokens == ("why", "so", "take", "3.5", "of", "4")
    assert ends == {1, 5}


def test_ngrams() -> None:
    assert ngrams(("a", "b", "c"), 2) == {("a", "b"), ("b", "c")}
    assert ngrams(("a", "b"), 5) == {("a", "b")}
    assert ngrams((), 2) == frozenset()


def test_boilerplate_needs_both_more_than_twenty_rows_and_the_share() -> None:
    gram, other = ("t",), ("u",)
    rows = [frozenset({gram})] * 21 + [frozenset({other})] * 20
    assert boilerplate(rows) == {gram}
    # 21 of 8000 rows is below 0.5 %.
    assert boilerplate(rows + [frozenset({(str(i),)}) for i in range(7959)]) == frozenset()


def test_shuffle_depends_on_seed_and_content_and_not_on_the_input_order() -> None:
    rows = [problem(f"question {i}") for i in range(50)]
    first = shuffled(rows, 0)
    assert shuffled(rows[::-1], 0) == first
    assert shuffled(rows, 1) != first
    assert [row for row in shuffled([*rows, problem("one more")], 0) if row in rows] == first
