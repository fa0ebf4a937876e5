r"""Chat format with two modes of thinking: Qwen3's conventions (technical report, arXiv 2505.09388, section 4.3).

A turn is `<|im_start|>role\ncontent<|im_end|>\n`. The assistant opens its turn with a think block, which is empty when
it answers directly. There are two switches: the *flag* (`/think`, `/no_think` in a user or system turn; the last one
wins; none means think), which the model has to obey by writing an empty block itself, and the *hard switch*
(`enable_thinking=False`), which puts the empty block into the prompt.

The Jinja template is stored with the tokenizer, so that other servers build the same prompts; `render_prompt` is its
Python twin (a test holds them equal). A response is tokenised apart from its prompt, and its think block apart from its
answer: the prompt of a training example is then token for token the prompt at inference.

Left out: tools, images, several assistant turns trained at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from posttrain.records import Conversation, DataError, Message, Mode

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, THINK_OPEN, THINK_CLOSE)
"""In the order of their ids in a tokenizer made here: id 0 pads."""

EMPTY_BLOCK = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"
ASSISTANT = f"{TURN_START}assistant\n"

CHAT_TEMPLATE = r"""
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last and message.reasoning_content is string %}
        {{- '<|im_start|>assistant\n<think>\n' + message.reasoning_content }}
        {{- '\n</think>\n\n' + message.content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".lstrip()

_FLAG = re.compile(r"(?<!\S)/(no_think|think)(?!\S)")


def install_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make `tokenizer` a chat tokenizer: template, end of turn as end of sequence, end of text as padding.

    Raises DataError when a special token is not one token of the vocabulary.
    """
    for token in SPECIAL_TOKENS:
        special_id(tokenizer, token)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = TURN_END
    tokenizer.pad_token = END_OF_TEXT


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a special token; raises DataError when the tokenizer splits it."""
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise DataError(f"tokenizer: got {len(ids)} tokens for '{token}', wanted one: add it as a special token")
    return int(ids[0])


def requested_mode(messages: Sequence[Message]) -> Mode:
    """Mode asked for by the last flag in the user and system turns; without any flag: think."""
    mode: Mode = "think"
    for message in messages:
        if message.role != "assistant":
            for flag in _FLAG.findall(message.content):
                mode = flag
    return mode


def with_flag(prompt: str, mode: Mode) -> str:
    """User turn that asks for `mode`; thinking is the default and stays unflagged."""
    return f"{prompt} /no_think" if mode == "no_think" else prompt


def prompt_text(messages: Sequence[Message], mode: Mode) -> str:
    """Text up to where the assistant starts to write; mode `no_think` is the hard switch.

    Earlier assistant turns appear without their thinking.
    """
    turns = "".join(f"{TURN_START}{turn.role}\n{_checked(turn)}{TURN_END}\n" for turn in messages)
    return turns + ASSISTANT + (EMPTY_BLOCK if mode == "no_think" else "")


def render_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], mode: Mode) -> list[int]:
    """Token ids the model continues: with mode `think` it opens its think block itself, as its flags ask."""
    return encode_text(tokenizer, prompt_text(messages, mode))


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a piece of text; special tokens in it become themselves, none is added."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def decode_ids(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of sampled tokens, special tokens included: the think tags are part of the answer's form."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def encode_example(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[list[int], list[int]]:
    """(ids, mask), both of length T, of a conversation whose last turn is the assistant's; mask 1 = trained.

    Trained are the think block, the answer and the end of turn. In mode `no_think` the empty block is trained when a
    flag asked for it (the model must learn to write it), and part of the prompt when no flag did (hard switch).
    """
    *history, last = conversation.messages
    if last.role != "assistant":
        raise DataError(f"{conversation.id}: field 'messages': got a last turn of '{last.role}', wanted 'assistant'")
    asked = requested_mode(history)
    if conversation.mode == "think" and asked == "no_think":
        raise DataError(
            f"{conversation.id}: field 'mode': got 'think', wanted 'no_think', which the last flag asks for"
        )
    if conversation.mode == "no_think" and last.thinking:
        raise DataError(f"{conversation.id}: field 'thinking': got {last.thinking[:40]!r}, wanted none in 'no_think'")
    hard = conversation.mode == "no_think" and asked == "think"
    prompt = render_prompt(tokenizer, history, "no_think" if hard else "think")
    response = [] if hard else encode_text(tokenizer, think_block(last.thinking))
    response += encode_text(tokenizer, _checked(last) + TURN_END)
    return prompt + response, [0] * len(prompt) + [1] * len(response)


def think_block(thinking: str | None) -> str:
    """Text before the answer: nothing when not a reasoning turn (None); no thinking gives the empty block."""
    return "" if thinking is None else f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n\n"


def _checked(message: Message) -> str:
    """The content, refused when it holds a token that would end or open a turn."""
    for token in (TURN_START, TURN_END, END_OF_TEXT):
        if token in message.content:
            raise DataError(f"message of '{message.role}': got '{token}' inside the content, wanted plain text")
    return message.content


def plain_text(prompt: str) -> str:
    r"""A question for a base model, which has no chat habits; it goes on with `\nworking\n\n\boxed{answer}`."""
    return f"Question: {prompt.strip()}\nSolution:"


def direct_text(prompt: str) -> str:
    r"""A question that a base model answers without working: it goes on with ` \boxed{answer}`."""
    return f"Question: {prompt.strip()}\nAnswer:"


def plain_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of `plain_text`."""
    return encode_text(tokenizer, plain_text(prompt))


def direct_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of `direct_text`: guessing without reasoning."""
    return encode_text(tokenizer, direct_text(prompt))
