import pytest

from posttrain.rewards.language import consistency, count_words, is_mixed, main_script


def test_share_of_target_words():
    """UT 8.1: each CJK character is a word, Latin runs are words, an empty thought is 0."""
    assert consistency("the sum 是 four", target="latin") == 3 / 4
    assert consistency("", target="latin") == 0.0
    assert consistency("3 + 4 = 7.", target="latin") == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("然后 then", {"cjk": 2, "latin": 1}),
        ("don't stop", {"latin": 3}),
        ("ab12cd", {"latin": 2}),
        ("привет мир, hello", {"cyrillic": 2, "latin": 1}),
        ("αβγ", {"greek": 1}),
        ("$x + y$ and \\boxed{7} \\frac{1}{2}", {"latin": 1}),
        ("ひらがな", {"cjk": 4}),
        ("再check", {"cjk": 1, "latin": 1}),
        ("3+4=7 \U0001f600", {}),
    ],
)
def test_words_by_script(text, words):
    assert count_words(text) == words


def test_words_do_not_depend_on_their_order():
    words = ["one", "二", "two", "три"]
    assert count_words(" ".join(words)) == count_words(" ".join(reversed(words)))


def test_main_script_and_mixing():
    assert main_script("What is 3 + 4?") == "latin"
    assert main_script("三加四 is") == "cjk"
    assert main_script("3 + 4 =") == "latin"
    assert is_mixed("然后 then", target="latin")
    assert not is_mixed("then 3+4", target="latin")
    assert is_mixed("then", target="cjk")
    assert not is_mixed("3+4", target="cjk")
    assert is_mixed("然后", target="latin") and not is_mixed("", target="latin")
