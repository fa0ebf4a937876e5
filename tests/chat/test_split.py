import time

import pytest

from posttrain.chat.split import Parts, answer_form, extract_answer, split_response, written

GOOD = "<think>\n3+4=7.\n</think>\n\nSo \\boxed{7}"


def test_parts_of_a_good_response():
    assert split_response(GOOD + "<|im_end|>") == Parts("3+4=7.", "So \\boxed{7}", True)


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        (GOOD, True),
        (GOOD + ".", True),
        ("<think>a</think>$\\boxed{7}$.", True),
        ("<think>a</think>\\(\\boxed{7}\\)", True),
        ("<think>a</think>\\boxed{\\frac{1}{2}}", True),
        ("<think>\\boxed{6}</think>\\boxed{7}", True),
        # UT 8.2
        ("<think>a \\boxed{7}", False),
        ("<think>a<think>b</think></think>\\boxed{7}", False),
        ("<think>a</think><think>b</think>\\boxed{7}", False),
        ("Well, <think>a</think>\\boxed{7}", False),
        ("<think>\n\n</think>\n\n\\boxed{7}", False),
        ("</think>a<think>\\boxed{7}", False),
        ("\\boxed{7}", False),
        ("<think>a</think>seven", False),
        ("<think>a</think>\\boxed{6} or \\boxed{7}", False),
        ("<think>a</think>\\boxed{7} and more words", False),
        ("<think>a</think>\\boxed{7", False),
        ("<think>a</think>\\boxed{7}<|im_end|><|im_end|>", False),
        ("<think>a</think>\\boxed{7}<|im_start|>user", False),
        ("", False),
    ],
)
def test_form_when_thinking(text, well_formed):
    assert split_response(text).well_formed is well_formed


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<think>\n\n</think>\n\n\\boxed{7}", True),
        ("\\boxed{7}", True),
        (GOOD, False),
        ("</think>\\boxed{7}", False),
        ("<think>\n\n</think>\n\nseven", False),
    ],
)
def test_form_when_not_thinking(text, well_formed):
    assert split_response(text, "no_think").well_formed is well_formed


def test_thinking_is_none_without_a_block_and_empty_when_skipped():
    assert split_response("7").thinking is None
    assert split_response("<think>unfinished").thinking is None
    assert split_response("<think>\n\n</think>\n\n7") == Parts("", "7", False)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<think>a</think>\\boxed{1}\\boxed{2}...", "2"),
        ("<think>a</think>\\boxed{1} then \\boxed{2", "1"),
        ("<think>\\boxed{7}</think>", None),
        ("<think>\\boxed{7}", None),
        ("\\boxed{7}", None),
        ("<think>a</think>\\boxed{}", ""),
        ("<think>a</think>\\boxed{ 7 }", "7"),
        ("<think>a</think>\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<think>a</think>\\boxed{\\boxed{7}}", "\\boxed{7}"),
        ("<think>a</think>{ \\boxed{7}", "7"),
        ("<think>a</think>\\boxed{1}</think>2", None),
    ],
)
def test_only_the_last_balanced_box_behind_the_thought_counts(text, answer):
    """UT 7: nested braces, several boxes, the answer after </think>."""
    assert extract_answer(text, require_think_closed=True) == answer


def test_an_unclosed_thought_may_be_allowed():
    assert extract_answer("so \\boxed{7}", require_think_closed=False) == "7"
    assert extract_answer("<think>\\boxed{7}</think> none", require_think_closed=False) is None
    assert extract_answer("none", require_think_closed=False) is None


def test_adversarial_text_costs_its_length():
    start = time.perf_counter()
    assert extract_answer("\\boxed{" * 50_000, require_think_closed=False) is None
    assert time.perf_counter() - start < 2.0


CODE = "<think>a ```b```</think>\n\nSo:\n\n```python\n  x = {\n\n```\nor better\n```\nx = 1\n\ny = 2\n```\n"


def test_programs_are_the_last_fenced_block():
    assert extract_answer(CODE + "Done.<|im_end|>", require_think_closed=True, form="code") == "x = 1\n\ny = 2"
    assert extract_answer("```\n    a\n```<|im_end|>", require_think_closed=False, form="code") == "    a"
    for text in ("x = 1", "```python\nx = 1", "a ```x``` b", ""):
        assert extract_answer(text, require_think_closed=False, form="code") is None
    assert extract_answer(CODE.replace("</think>", ""), require_think_closed=True, form="code") is None


def test_all_of_the_answer_where_its_form_is_judged():
    text = "<think>a</think>\n\nDear \\boxed{you},\n\nyes.<|im_end|>"
    assert extract_answer(text, require_think_closed=True, form="text") == "Dear \\boxed{you},\n\nyes."
    assert extract_answer("<think>a</think> <|im_end|>", require_think_closed=True, form="text") is None


@pytest.mark.parametrize(
    ("text", "form", "well_formed"),
    [
        ("<think>a</think>```\nx = 1\n```", "code", True),
        ("<think>a</think>Here:\n```python\nx = 1\n```\nGood.", "code", True),
        (CODE, "code", False),  # two blocks
        ("<think>a</think>\\boxed{7}", "code", False),
        ("<think>a</think>any text", "text", True),
        ("<think>a</think> <|im_end|>", "text", False),
        ("any text", "text", False),  # no thinking
    ],
)
def test_form_by_verifier(text, form, well_formed):
    assert split_response(text, "think", form).well_formed is well_formed


def test_what_is_written_is_found():
    for verifier in ("math", "choice", "code", "constraint"):
        form = answer_form(verifier)
        assert extract_answer(written("a = {1}\nb", form), require_think_closed=False, form=form) == "a = {1}\nb"
