"""The world's tokenizer: digits alone, the box in one piece, any text back unchanged."""

from posttrain.chat.template import SPECIAL_TOKENS
from posttrain.curation.tokenizer import train_tokenizer

TEXTS = ["Question: 12 + 7 =\nSolution: 12+7=19. \\boxed{19}", "然后 14+2=16. \\boxed{16}"] * 20


def test_round_trip_digits_and_specials() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=400)
    for text in [*TEXTS, "unseen: żółw \\n 7{} <b>", "  two  spaces\n\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert tokenizer.tokenize("123") == ["1", "2", "3"]
    assert tokenizer.tokenize("\\boxed{19}") == ["\\boxed{", "1", "9", "}"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(TEXTS, vocab_size=400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
