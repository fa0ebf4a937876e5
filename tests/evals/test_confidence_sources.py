import math

import pytest

from posttrain.chat.template import EMPTY_BLOCK, TURN_END, decode_ids, encode_text
from posttrain.evals import confidence_sources as sources
from tests.chat.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def tokens_of(text: str, content: tuple[int, int]) -> list[int]:
    """Token by token: those that share a character with text[content]."""
    ids = encode_text(TOKENIZER, text)
    ends = [len(decode_ids(TOKENIZER, ids[: i + 1])) for i in range(len(ids))]
    starts = [0, *ends[:-1]]
    spans = enumerate(zip(starts, ends, strict=True))
    return [i for i, (start, end) in spans if start < content[1] and end > content[0]]


@pytest.mark.parametrize(
    ("text", "answer", "last", "before"),
    [
        ("<think>\n3+4=7\n</think>\n\n\\boxed{7}<|im_end|>", "7", True, "\\boxed{"),
        ("<think>\n然后 5*25=125\n</think>\n\n\\boxed{ -125 }.", "-125", True, "\\boxed{ "),
        ("\\boxed{12}<think>然</think>\\boxed{12}", "12", True, "</think>\\boxed{"),
        ("so \\boxed{12} and then \\boxed{12}", "12", False, "so \\boxed{"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", True, "\\boxed{"),
    ],
)
def test_the_span_holds_the_answer(text: str, answer: str, last: bool, before: str) -> None:
    start = text.index(before) + len(before)
    span = sources.answer_span(TOKENIZER, encode_text(TOKENIZER, text), answer, last=last)
    assert list(range(span.start, span.stop)) == tokens_of(text, (start, start + len(answer)))


def test_an_empty_box_is_its_closing_brace() -> None:
    text = "x\\boxed{}y"
    span = sources.answer_span(TOKENIZER, encode_text(TOKENIZER, text), "", last=True)
    assert list(range(span.start, span.stop)) == tokens_of(text, (text.index("}"), text.index("}") + 1))
    with pytest.raises(ValueError, match=r"answer '8': got no box with it in .*wanted one"):
        sources.answer_span(TOKENIZER, encode_text(TOKENIZER, "\\boxed{7} 8"), "8", last=True)


def test_token_confidence_is_a_geometric_mean() -> None:
    assert sources.token_confidence([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert sources.token_confidence([math.log(0.3)]) == pytest.approx(0.3)


def test_p_true_by_hand() -> None:
    assert sources.p_true(math.log(0.3), math.log(0.1)) == pytest.approx((0.75, 0.4))
    probability, either = sources.p_true(-2000.0, -2001.0)  # neither word is likely: no division by 0
    assert probability == pytest.approx(1 / (1 + math.exp(-1))) and either == 0.0
    swapped, same = sources.p_true(math.log(0.1), math.log(0.3))
    assert (swapped, same) == pytest.approx((0.25, 0.4))


@pytest.mark.parametrize(
    ("reply", "stated"),
    [
        ("Confidence: 0.85", 0.85),
        ("My confidence is 80 %.", 0.8),
        ("**Confidence:** .5", 0.5),
        ("confidence = <1>", 1.0),
        ("Confidence: 0", 0.0),
        ("Confidence: 100%<|im_end|>", 1.0),
        ("Confidence: 1.5", None),
        ("Confidence: 150 %", None),
        ("Confidence: -0.3", None),
        ("Confidence: 12/20", None),
        ("Confidence: 1 out of 10", None),
        ("Confidence: high", None),
        ("\\boxed{1}", None),
        ("0.85", None),
        ("", None),
    ],
)
def test_stated_confidence(reply: str, stated: float | None) -> None:
    assert sources.stated_confidence(reply) == stated


@pytest.mark.parametrize("ask", [sources.true_prompt, sources.number_prompt])
def test_questions_about_an_answer(ask) -> None:  # type: ignore[no-untyped-def]
    chat, plain = (decode_ids(TOKENIZER, ask(TOKENIZER, "What is 3 + 4?", "7", chat=flag)) for flag in (True, False))
    assert chat.endswith(EMPTY_BLOCK) and "What is 3 + 4?" in chat and "7" in chat
    assert plain.startswith("Question: What is 3 + 4?\n") and TURN_END not in plain
    # An answer cannot end its turn.
    forged = decode_ids(TOKENIZER, ask(TOKENIZER, "What is 3 + 4?", f"7{TURN_END}", chat=True))
    assert forged.count(TURN_END) == chat.count(TURN_END)


def test_replies_go_on_from_their_prompt() -> None:
    for chat, words in ((True, ["True", "False"]), (False, [" True", " False"])):
        assert [decode_ids(TOKENIZER, ids) for ids in sources.true_replies(TOKENIZER, chat=chat)] == words
