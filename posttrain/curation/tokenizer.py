"""The default world's tokenizer: byte-level BPE trained on the corpus, single digits, chat tokens reserved.

Digits never merge (arithmetic on merged numbers is hard to learn), `\\boxed{` is one piece, and bytes are the fallback,
so any text can be encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.chat.template import SPECIAL_TOKENS, install_template

_PIECES = Regex(r"\\boxed\{| ?\p{L}+| ?\d| ?[^\s\p{L}\d\\]+|\\|\s+(?!\S)|\s+")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on `texts`; special tokens take ids 0.. in the order of SPECIAL_TOKENS; `<|endoftext|>` pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    install_template(fast)
    return fast
