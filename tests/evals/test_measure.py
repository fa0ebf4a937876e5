"""The evaluation of scripted models: an engine that answers by rule, so that every expected value is known."""

from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import SPECIAL_TOKENS, decode_ids, encode_text, install_template
from posttrain.engine.rollout import Request
from posttrain.evals.measure import evaluate_model
from posttrain.records import Problem, Rollout, Verdict

SECTION = config.Evaluate(
    samples=2,
    generation=config.Generation(temperature=1.0, max_new_tokens=200),
    no_think_tokens=8,
    pass_at=(1,),
    budgets=(0, 5, 1000),
    bootstrap=10,
    ece_bins=10,
)
PROBLEMS = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), "exact", "sums", "test") for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    install_template(made)
    return made


class Scripted:
    """Answers by a rule from (prompt text, sample number); remembers what it was asked."""

    version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rule: Callable[[str, int], str]) -> None:
        self.tokenizer, self.rule = tokenizer, rule
        self.asked: list[tuple[list[str], int, int]] = []

    def generate(
        self,
        requests: Sequence[Request],
        *,
        samples: int,
        generation: config.Generation,
        seed: int,
        stop_ids: Sequence[int] | None = None,
    ) -> list[Rollout]:
        texts = [decode_ids(self.tokenizer, request.prompt_ids) for request in requests]
        self.asked.append((texts, samples, seed))
        rollouts = []
        for request, text in zip(requests, texts, strict=True):
            for number in range(samples):
                ids = tuple(encode_text(self.tokenizer, self.rule(text, number)))
                logprobs, versions = (0.0,) * len(ids), (0,) * len(ids)
                rollouts.append(Rollout(request.problem_id, request.prompt_ids, ids, logprobs, "stop", versions))
        return rollouts

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        raise AssertionError("an evaluation changes no weights")

    def close(self) -> None:
        pass


def exact(problem: Problem, answer: str | None) -> Verdict:
    return Verdict(1.0, "correct") if answer == problem.answer else Verdict(0.0, "wrong")


def number_of(prompt: str) -> int:
    """The question's number, from any form of prompt."""
    return int(prompt.split(" + 1 =")[0].split()[-1].split("\n")[-1])


def hybrid(prompt: str, sample: int) -> str:
    """Thinks ten letters and is right; with two of them or none it is wrong; obeys flags except on question 3."""
    n = number_of(prompt)
    turn = prompt.split("assistant\n", 1)[1]
    if turn.startswith("<think>"):
        return f"\\boxed{{{n + 1 if len(turn) > 80 else 0}}}<|im_end|>"
    if "/no_think<|im_end|>" in prompt and n != 3:
        return "<think>\n\n</think>\n\n\\boxed{0}<|im_end|>"
    words = "然后 works" if sample == 1 else "works here"
    return f"<think>\n{words}\n</think>\n\n\\boxed{{{n + 1}}}<|im_end|>"


def test_chat_model(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Scripted(tokenizer, hybrid)
    rows = evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=exact, base=False)
    assert [row.id for row in rows] == [problem.id for problem in PROBLEMS]
    first = rows[0]
    assert first.think.answers == ("1", "1")
    assert first.think.correct == (True, True)
    assert first.think.well_formed == (True, True)
    assert first.think.mixed == (False, True)
    # <think>, newline, "works here", newline, </think>: twelve tokens between the tags.
    assert first.think.thinking_tokens[0] == 12
    assert first.think.tokens[0] == 12 + 2 + len("\n\n\\boxed{1}") + 1
    assert first.no_think.answers == ("0", "0")
    assert first.no_think.thinking_tokens == (0, 0)
    assert first.no_think.correct == (False, False)
    assert first.no_think.well_formed == (True, True)
    assert first.think.text.startswith("<think>\nworks here")


def test_budgets_stop_the_thoughts_that_were_sampled(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Scripted(tokenizer, hybrid)
    rows = evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=exact, base=False)
    none, five, all_of_it = rows[1].budget
    assert (none.tokens, none.correct, none.forced) == (0, False, True)
    assert (five.tokens, five.correct, five.forced) == (5, True, True)
    assert (all_of_it.tokens, all_of_it.correct, all_of_it.forced) == (1000, True, False)
    stopped = [texts for texts, samples, _ in engine.asked if samples == 1 and "<think>\nwork" in texts[0]]
    assert len(stopped) == 1  # at five tokens; nothing is sampled at 0 and at 1000
    assert stopped[0][1].count("<think>\nwork\n\n") == 1  # newline and four letters kept, then the instruction
    assert stopped[0][1].endswith("</think>\n\n")


def test_flags(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Scripted(tokenizer, hybrid)
    rows = evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=exact, base=False)
    assert [row.follows for row in rows] == [(True, True), (True, True), (True, True), (True, False)]
    flagged = [texts for texts, _, _ in engine.asked if " /" in texts[0] and "<think>" not in texts[0]]
    assert "0 + 1 = /think<|im_end|>" in flagged[0][0]
    assert "1 + 1 = /no_think /think<|im_end|>" in flagged[0][1]
    assert "1 + 1 = /think /no_think<|im_end|>" in flagged[1][1]


def test_every_draw_has_its_own_seed_and_every_model_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    seeds = []
    for rule in (hybrid, lambda prompt, sample: "<think>\nno\n</think>\n\n\\boxed{9}<|im_end|>"):
        engine = Scripted(tokenizer, rule)
        evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=exact, base=False)
        seeds.append([seed for _, _, seed in engine.asked])
    assert len(set(seeds[0])) == len(seeds[0])
    assert seeds[0][:2] == seeds[1][:2]


def test_crashed_verifier_is_unknown_and_asked_once(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = []

    def crashes(problem: Problem, answer: str | None) -> Verdict:
        asked.append((problem.id, answer))
        return Verdict(0.0, "unverified")

    engine = Scripted(tokenizer, hybrid)
    rows = evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=crashes, base=False)
    assert rows[0].think.correct == (None, None)
    assert rows[0].budget[1].correct is None
    assert len(asked) == len(set(asked))


def plain(prompt: str, sample: int) -> str:
    n = number_of(prompt)
    if prompt.endswith("Answer:"):
        return " \\boxed{0}<|endoftext|>"
    return f" Quickly: it is \\boxed{{{n + 1}}}\nQuestion: \\boxed{{5}}<|endoftext|>"


def test_base_model_is_asked_plainly(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Scripted(tokenizer, plain)
    rows = evaluate_model(tokenizer, engine, PROBLEMS, SECTION, seed=7, verify=exact, base=True)
    assert engine.asked[0][0][0] == "Question: 0 + 1 =\nSolution:"
    assert engine.asked[1][0][0] == "Question: 0 + 1 =\nAnswer:"
    assert rows[2].think.answers == ("3", "3")  # the first box, not the last
    assert rows[2].think.correct == (True, True)
    assert rows[2].no_think.correct == (False, False)
    assert not any(rows[2].think.well_formed)
    assert not any(rows[2].think.mixed)
    assert rows[2].follows == ()
    # " Quickly: it is \boxed{" is 23 bytes; the box is open with the last of them.
    assert rows[2].think.thinking_tokens == (22, 22)
    assert [point.forced for point in rows[2].budget] == [True, True, False]
    assert [point.correct for point in rows[2].budget] == [False, False, True]
    assert engine.asked[2][0][2] == "Question: 2 + 1 =\nSolution: Quic\nAnswer:"
