import dataclasses
from pathlib import Path

import pytest

from posttrain.loops.pair_inputs import refuse_bad_pairs
from posttrain.loops.preference import run_preference
from posttrain.records import DataError, Pair
from tests.loops.test_preference import RIGHT, WRONG, pairs, section
from tests.loops.toy import ENGINE, QUESTIONS, Journal, same_weights, start_policy, weights_of

FILE = Path("data/preferences/pairs.jsonl")
END = start_policy().tokenizer.eos_token_id
SAMPLED = {"prompt_ids": (5, 6), "chosen_ids": (7, 9, END), "rejected_ids": (8, END)}
CUT = "<think>\nso we"


def refused(changes, *, file=FILE, extra=()) -> str:
    """The message for the toy's pairs with the second one changed."""
    given = pairs()
    given[1] = dataclasses.replace(given[1], **changes)
    with pytest.raises(DataError) as error:
        refuse_bad_pairs([*given, *extra], start_policy().tokenizer, file=file)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rejected": RIGHT}, "fields 'chosen' and 'rejected': got equal texts, wanted two responses"),
        ({"rejected": RIGHT.removesuffix("<|im_end|>")}, "fields 'chosen' and 'rejected': got equal texts"),
        (SAMPLED | {"rejected": RIGHT}, "fields 'chosen' and 'rejected': got equal texts"),
        ({"chosen": ""}, "field 'chosen': got an empty response"),
        ({"chosen": " \n<|im_end|>"}, "field 'chosen': got an empty response"),
        (SAMPLED | {"rejected_ids": (END,)}, "field 'rejected': got an empty response"),
        ({"rejected": CUT}, "field 'rejected': got a truncated response, wanted one that ends its turn"),
        (SAMPLED | {"chosen_ids": (7, 9)}, "field 'chosen': got a truncated response"),
        # Nor one that was cut off after it was sampled.
        (SAMPLED | {"rejected_ids": (8, 9)}, "field 'rejected': got a truncated response"),
        (SAMPLED | {"chosen": CUT, "chosen_ids": (7, 9)}, "field 'chosen': got a truncated response"),
        ({"split": "heldout"}, "got 'train', wanted 'heldout' as for the other pairs of the same prompt"),
        ({"problem_id": "held"}, "got 'heldout', wanted 'train' as for the other pairs of the same problem_id"),
    ],
)
def test_a_pair_that_cannot_be_learnt_from_is_named(changes, said):
    message = refused(changes)
    assert said in message
    line, problem = {"split": (5, "q4"), "problem_id": (10, "held")}.get(next(iter(changes)), (2, "q1"))
    assert message.startswith(f"{FILE}:{line}: problem {problem}: field")


def test_without_a_file_pair_and_problem_are_named():
    assert refused({"chosen": ""}, file=None).startswith("pair t1: problem q1: field 'chosen'")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        SAMPLED,
        # Broken off by the sampler: what not to say, and what noise may put in the place of the better one.
        SAMPLED | {"rejected": CUT, "rejected_ids": (8, 9)},
        SAMPLED | {"chosen": CUT, "chosen_ids": (7, 9), "margin": -1.0},
    ],
)
def test_what_may_be_learnt(changes):
    given = pairs()
    given[1] = dataclasses.replace(given[1], **changes)
    refuse_bad_pairs(given, start_policy().tokenizer, file=FILE)


def test_one_prompt_is_too_few():
    one = [Pair(f"t{i}", "q", QUESTIONS[0], RIGHT, WRONG, 1.0, "rule") for i in range(3)]
    for given in (one, [*one, pairs()[-1]]):
        with pytest.raises(DataError, match=r"pairs.jsonl: got pairs of 1 prompts to train on, wanted at least 2"):
            refuse_bad_pairs(given, start_policy().tokenizer, file=FILE)


def test_nothing_is_trained_on_refused_pairs(tmp_path):
    policy = start_policy()
    journal = Journal()
    with pytest.raises(DataError, match="pair h: problem held: field 'rejected': got an empty response"):
        run_preference(
            policy, [*pairs()[:-1], dataclasses.replace(pairs()[-1], rejected="")], section=section(), engine=ENGINE,
            seed=0, log=journal, note=print, checkpoints=tmp_path, save_every=1, file=None,
        )  # fmt: skip
    assert journal.rows == [] and list(tmp_path.iterdir()) == []
    assert same_weights(weights_of(policy), weights_of(start_policy()))
