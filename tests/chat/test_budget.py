from posttrain.chat.budget import StopTokens, build_budget_prompt, stop_tokens
from posttrain.chat.template import decode_ids
from tests.chat.tokenizer import build_tokenizer

OPEN, CLOSE, END = 100, 101, 102
TOKENS = StopTokens(OPEN, CLOSE, stop_ids=(90, 91, CLOSE, 92), empty_ids=(OPEN, 92, CLOSE, 92))
PROMPT = (1, 2, 3)
THOUGHT = tuple(range(10, 20))
RESPONSE = (OPEN, *THOUGHT, CLOSE, 7, END)


def test_a_thought_over_budget_is_cut():
    """UT 10.3: 10 tokens with budget 4 keep 4, then the instruction, then the answer."""
    cut = build_budget_prompt(PROMPT, RESPONSE, budget=4, tokens=TOKENS)
    assert cut.prompt_ids == (*PROMPT, OPEN, 10, 11, 12, 13, 90, 91, CLOSE, 92)
    assert (cut.kept, cut.inserted, cut.forced_stop) == (4, 4, True)
    assert cut.prompt_ids[-cut.inserted :] == TOKENS.stop_ids


def test_a_thought_within_budget_stands():
    for budget in (10, 11, 1000):
        kept = build_budget_prompt(PROMPT, RESPONSE, budget=budget, tokens=TOKENS)
        assert (kept.prompt_ids, kept.kept, kept.inserted, kept.forced_stop) == (PROMPT, 10, 0, False)
    assert build_budget_prompt(PROMPT, RESPONSE, budget=9, tokens=TOKENS).forced_stop


def test_budget_zero_is_the_empty_block():
    cut = build_budget_prompt(PROMPT, RESPONSE, budget=0, tokens=TOKENS)
    assert cut.prompt_ids == (*PROMPT, OPEN, 92, CLOSE, 92)
    assert (cut.kept, cut.forced_stop) == (0, True)


def test_a_thought_that_never_closed_is_stopped_where_it_ends():
    cut = build_budget_prompt(PROMPT, (OPEN, 10, 11), budget=8, tokens=TOKENS)
    assert cut.prompt_ids == (*PROMPT, OPEN, 10, 11, *TOKENS.stop_ids)
    assert (cut.kept, cut.forced_stop) == (2, True)


def test_an_answer_without_a_thought_stands():
    assert not build_budget_prompt(PROMPT, (7, END), budget=1, tokens=TOKENS).forced_stop


def test_stop_tokens_of_a_tokenizer():
    tokenizer = build_tokenizer()
    tokens = stop_tokens(tokenizer)
    assert decode_ids(tokenizer, tokens.stop_ids).endswith(".\n</think>\n\n")
    assert decode_ids(tokenizer, tokens.empty_ids) == "<think>\n\n</think>\n\n"
    assert tokens.stop_ids.count(tokens.close_id) == 1
