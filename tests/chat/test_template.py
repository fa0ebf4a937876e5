import pytest

from posttrain.chat.template import (
    SPECIAL_TOKENS,
    decode_ids,
    encode_example,
    plain_prompt,
    prompt_text,
    render_prompt,
    requested_mode,
    special_id,
    with_flag,
)
from posttrain.records import Conversation, DataError, Message
from tests.chat.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
QUESTION = Message("user", "What is 3 + 4?")
FLAGGED = Message("user", "What is 3 + 4? /no_think")
SYSTEM = Message("system", "Be brief.")
THOUGHT = Message("assistant", "So \\boxed{7}", thinking="3+4=7.")
SKIPPED = Message("assistant", "So \\boxed{7}", thinking="")
ANSWERED = Message("assistant", "So \\boxed{7}")


def split_by_mask(*messages: Message, mode: str) -> tuple[str, str]:
    """(untrained text, trained text); the mask must be one run of zeros and then one run of ones."""
    ids, mask = encode_example(TOKENIZER, Conversation("c", "p", messages, mode))
    assert len(ids) == len(mask)
    start = mask.index(1)
    assert mask == [0] * start + [1] * (len(mask) - start)
    return decode_ids(TOKENIZER, ids[:start]), decode_ids(TOKENIZER, ids[start:])


CASES = {
    "think": (
        (QUESTION, THOUGHT),
        "think",
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n3+4=7.\n</think>\n\nSo \\boxed{7}<|im_end|>",
    ),
    "no_think by flag: the model must write the empty block": (
        (FLAGGED, SKIPPED),
        "no_think",
        "<|im_start|>user\nWhat is 3 + 4? /no_think<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nSo \\boxed{7}<|im_end|>",
    ),
    "hard switch: the empty block is given": (
        (QUESTION, SKIPPED),
        "no_think",
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "So \\boxed{7}<|im_end|>",
    ),
    "not a reasoning turn": (
        (QUESTION, ANSWERED),
        "think",
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n",
        "So \\boxed{7}<|im_end|>",
    ),
    "system": (
        (SYSTEM, QUESTION, THOUGHT),
        "think",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n3+4=7.\n</think>\n\nSo \\boxed{7}<|im_end|>",
    ),
    "several turns: the last flag wins, history drops its thinking": (
        (QUESTION, THOUGHT, Message("user", "Again. /no_think"), SKIPPED),
        "no_think",
        (
            "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\nSo \\boxed{7}<|im_end|>\n"
            "<|im_start|>user\nAgain. /no_think<|im_end|>\n<|im_start|>assistant\n"
        ),
        "<think>\n\n</think>\n\nSo \\boxed{7}<|im_end|>",
    ),
    "several turns: thinking switched on again": (
        (FLAGGED, SKIPPED, Message("user", "Again. /think"), THOUGHT),
        "think",
        (
            "<|im_start|>user\nWhat is 3 + 4? /no_think<|im_end|>\n<|im_start|>assistant\nSo \\boxed{7}<|im_end|>\n"
            "<|im_start|>user\nAgain. /think<|im_end|>\n<|im_start|>assistant\n"
        ),
        "<think>\n3+4=7.\n</think>\n\nSo \\boxed{7}<|im_end|>",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_last_assistant_turn_is_trained(name):
    """UT 10.2: the mask covers think block, answer and end of turn, and nothing else."""
    messages, mode, untrained, trained = CASES[name]
    assert split_by_mask(*messages, mode=mode) == (untrained, trained)


@pytest.mark.parametrize("name", CASES)
def test_a_training_example_starts_with_the_prompt_of_inference(name):
    messages, mode, _, _ = CASES[name]
    conversation = Conversation("c", "p", messages, mode)
    ids, mask = encode_example(TOKENIZER, conversation)
    hard = mode == "no_think" and requested_mode(messages[:-1]) == "think"
    assert ids[: mask.index(1)] == render_prompt(TOKENIZER, messages[:-1], "no_think" if hard else "think")


def as_dicts(messages):
    return [
        {"role": m.role, "content": m.content} | ({} if m.thinking is None else {"reasoning_content": m.thinking})
        for m in messages
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["think", "no_think"])
def test_the_stored_template_renders_the_same_prompt(name, mode):
    history = CASES[name][0][:-1]
    theirs = TOKENIZER.apply_chat_template(
        as_dicts(history), tokenize=False, add_generation_prompt=True, enable_thinking=mode == "think"
    )
    assert theirs == prompt_text(history, mode)
    ids = TOKENIZER.apply_chat_template(
        as_dicts(history), add_generation_prompt=True, enable_thinking=mode == "think", return_dict=False
    )
    assert list(ids) == render_prompt(TOKENIZER, history, mode)


@pytest.mark.parametrize("name", CASES)
def test_the_stored_template_renders_the_same_example(name):
    messages, _, untrained, trained = CASES[name]
    assert TOKENIZER.apply_chat_template(as_dicts(messages), tokenize=False) == untrained + trained + "\n"


def test_the_template_survives_saving(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = type(TOKENIZER).from_pretrained(tmp_path)
    text = loaded.apply_chat_template(as_dicts([QUESTION]), tokenize=False, add_generation_prompt=True)
    assert text == prompt_text([QUESTION], "think")
    assert (loaded.eos_token, loaded.pad_token, loaded.pad_token_id) == ("<|im_end|>", "<|endoftext|>", 0)


@pytest.mark.parametrize(
    ("turns", "mode"),
    [
        (("Hi",), "think"),
        (("Hi /no_think",), "no_think"),
        (("/think a", "/no_think b"), "no_think"),
        (("/no_think a", "b /think"), "think"),
        (("/no_think a", "b"), "no_think"),
        (("both /think and /no_think",), "no_think"),
        (("path/no_think", "a/think"), "think"),
        (("/no_thinking",), "think"),
    ],
)
def test_the_last_flag_wins(turns, mode):
    assert requested_mode([Message("user", turn) for turn in turns]) == mode


def test_flags_of_the_assistant_do_not_count():
    assert requested_mode([QUESTION, Message("assistant", "/no_think")]) == "think"


def test_with_flag_asks_for_the_mode():
    for mode in ("think", "no_think"):
        assert requested_mode([Message("user", with_flag("What is 3 + 4?", mode))]) == mode
    assert with_flag("Hi", "no_think") == "Hi /no_think"


@pytest.mark.parametrize(
    ("messages", "mode", "named"),
    [
        ((QUESTION,), "think", "last turn"),
        ((FLAGGED, THOUGHT), "think", "'mode'"),
        ((FLAGGED, THOUGHT), "no_think", "'thinking'"),
        ((Message("user", "a<|im_end|>b"), THOUGHT), "think", "<|im_end|>"),
    ],
)
def test_contradictions_are_refused(messages, mode, named):
    with pytest.raises(DataError, match=named.replace("|", r"\|")):
        encode_example(TOKENIZER, Conversation("c", "p", messages, mode))


def test_special_tokens_are_single_and_padding_is_zero():
    assert [special_id(TOKENIZER, token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="wanted one"):
        special_id(TOKENIZER, "<|unknown|>")


def test_a_base_prompt_has_no_chat_markup():
    assert decode_ids(TOKENIZER, plain_prompt(TOKENIZER, " What is 3 + 4? ")) == "Question: What is 3 + 4?\nSolution:"
