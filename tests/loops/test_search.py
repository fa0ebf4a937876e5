import pytest

from posttrain.loops.process_reward import checker_scorer
from posttrain.loops.search import Searcher, StepSampler, beginning
from posttrain.rewards.steps import AGGREGATIONS, split_steps
from posttrain.rl.search import RULES
from tests.loops.worked import PROBLEM, TOKENIZER, TOKENS, Scripted, worked_samples

SAMPLES = worked_samples()


def searcher(engine, **changes):
    fields = {
        "scorer": checker_scorer(TOKENIZER),
        "values": AGGREGATIONS["min"],
        "rule": RULES["uct"],
        "exploration": 1.0,
        "width": 3,
        "generation": TOKENS,
        "reserve": 20,
        "simulations": 40,
    }
    return Searcher(engine=engine, tokenizer=TOKENIZER, **(fields | changes))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_search_with_the_checker_finds_the_right_answer(rule):
    (found,) = searcher(Scripted(), rule=RULES[rule]).search([PROBLEM], budgets=[400], seed=0)
    assert found.sample.correct and found.value == 1.0
    assert found.sample.rollout.finish == "stop"


def test_every_generated_token_is_counted():
    engine = Scripted()
    found = searcher(engine).search([PROBLEM, PROBLEM], budgets=[150, 300], seed=0)
    assert sum(result.tokens for result in found) == engine.tokens
    for result, budget in zip(found, (150, 300), strict=True):
        # A round overshoots by no more than one step of each proposal.
        assert result.tokens <= budget + 3 * TOKENS.max_new_tokens
        assert result.tokens_scored > 0 and result.nodes > 1


def test_the_same_seed_gives_the_same_search():
    first, second = (searcher(Scripted()).search([PROBLEM], budgets=[200], seed=4) for _ in range(2))
    assert first == second


def test_without_budget_there_is_still_a_whole_response():
    engine = Scripted()
    (found,) = searcher(engine).search([PROBLEM], budgets=[1], seed=0)
    assert found.nodes == 2 and found.tokens == found.sample.tokens == engine.tokens
    assert found.sample.parts.well_formed


def test_a_tree_that_is_complete_ends_by_the_number_of_descents():
    (found,) = searcher(Scripted(), simulations=25).search([PROBLEM], budgets=[10**6], seed=0)
    assert found.tokens < 10**5


def test_a_step_more_is_exactly_a_step_more():
    stepper = StepSampler(Scripted(), TOKENIZER, TOKENS, seed=0)
    whole = SAMPLES[0].rollout
    steps = split_steps(TOKENIZER, whole.response_ids)
    starts = [beginning(whole, tokens) for tokens in (0, *(step.end + 1 for step in steps[:-1]))]
    for number, (found, tokens) in enumerate(stepper.next_steps(starts, samples=4), start=1):
        lengths = [len(rollout.response_ids) - len(starts[number - 1].response_ids) for rollout in found]
        assert min(lengths) > 0 and tokens >= sum(lengths)
        for rollout in found:
            assert len(split_steps(TOKENIZER, rollout.response_ids)) == number
            assert rollout.response_ids[: len(starts[number - 1].response_ids)] == starts[number - 1].response_ids
            assert len(rollout.logprobs) == len(rollout.response_ids) == len(rollout.version_per_token)


def test_a_response_is_over_by_its_end_token_or_by_length():
    stepper = StepSampler(Scripted(), TOKENIZER, TOKENS, seed=0)
    whole = SAMPLES[0].rollout
    assert stepper.ended(whole) and not stepper.ended(beginning(whole, 5))
    short = TOKENS.model_copy(update={"max_new_tokens": 5})
    assert StepSampler(Scripted(), TOKENIZER, short, seed=0).ended(beginning(whole, 5))
