import random

import pytest

from posttrain.rewards.language import LEAST_LETTERS, identify, identity, letters, passages, prose

ENGLISH = "First we add the two numbers together."
GERMAN = "Zuerst addieren wir die beiden Zahlen."


def test_a_language_is_told_by_its_words_not_its_letters():
    """What the script cannot see: both are latin."""
    assert (identify(ENGLISH), identify(GERMAN)) == ("en", "de")
    assert identify("d'abord nous additionnons les deux nombres") == "fr"


def test_a_short_text_has_no_language():
    assert letters("that is about right.") == 16
    assert identify("that is about right.") is None
    assert identify("a" * (LEAST_LETTERS - 1)) is None and identify("a" * LEAST_LETTERS) is not None
    assert identify("1234567890 + 1234567890 = ?") is None


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("so ```print('hallo welt')``` it is", "so it is"),
        ("so `return wahr` it is", "so it is"),
        ("so ```never closed", "so"),
        ("then $x = 3 + y$ and \\(a\\) and \\[b\n+ c\\] hold", "then and and hold"),
        ("the box \\boxed{zwei} and \\frac{ein}{halb} too", "the box and too"),
        ("from \\begin{align*}x &= y\\end{align*} on", "from on"),
        ("12 apples and 7 pears", "apples and pears"),
    ],
)
def test_code_formulas_and_digits_are_no_language(text, left):
    assert prose(text).split() == left.split()


def test_passages_are_whole_sentences_of_some_length():
    text = "Wait. So. First we add the two numbers. Done. Then we take away the third one! Yes."
    assert passages(text) == ["Wait So First we add the two numbers", "Done Then we take away the third one Yes"]
    assert passages("Wait. So.") == []


def test_share_of_the_words_in_the_language_of_the_question():
    """By hand: seven English words and six German ones."""
    assert identity(f"{ENGLISH} {GERMAN}", target="en") == pytest.approx(7 / 13)
    assert identity(f"{ENGLISH} {GERMAN}", target="de") == pytest.approx(6 / 13)
    assert identity(ENGLISH, target="en") == 1.0
    assert identity("so 3 + 4 = 7", target="en") is None


def test_the_order_of_sentences_does_not_matter():
    sentences = [
        ENGLISH,
        GERMAN,
        "Now we compare the result with the question.",
        "Das Ergebnis ist dann gleich sieben.",
    ]
    shares = set()
    for seed in range(4):
        order = random.Random(seed).sample(sentences, len(sentences))
        shares.add(identity(" ".join(order), target="en"))
    assert len(shares) == 1
