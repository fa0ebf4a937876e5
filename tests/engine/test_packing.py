"""Responses packed into one row: what is wanted of them, how they are grouped, and that none sees another."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.engine.attention import packed_hidden
from posttrain.engine.packing import Response, pack, plan
from posttrain.engine.policy import predicted_logprobs
from posttrain.errors import ModelError
from tests.engine.conftest import llama_model, micro_model
from tests.plain import pad, sequence_logprobs

MODELS = {"qwen3": micro_model, "llama": llama_model}


def some_responses() -> list[Response]:
    """Groups of one to five responses of all lengths, prompts of unequal ones, two texts without a prompt."""
    rng = random.Random(3)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 64) for _ in range(length))

    groups = [(draw(9), (4, 11, 1, 5, 20)), (draw(4), (3, 30)), (draw(6), (7,)), (draw(1), (2, 2, 2))]
    made = [(prompt, draw(length)) for prompt, lengths in groups for length in lengths]
    return [*made, ((), draw(8)), ((), draw(3))]


def masks(responses: list[Response]) -> list[list[int]]:
    """Some tokens of each, never the first of a text without a prompt."""
    rng = random.Random(4)
    return [[int(rng.random() < 0.7 and bool(t or prompt)) for t in range(len(own))] for prompt, own in responses]


def alone(model: Any, response: Response, mask: list[int], *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the wanted tokens of a response by itself."""
    prompt, own = response
    mask_1T = torch.tensor([[0] * len(prompt) + mask])
    values = sequence_logprobs(model, torch.tensor([[*prompt, *own]]), mask_1T, temperature=temperature)
    return values[mask_1T.bool()]


def test_every_prompt_is_in_the_row_once_and_positions_follow_it() -> None:
    packed = pack([((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((11,), (12, 13)), ((), (14, 15))], wanted=[
        [1, 1], [1], [0, 1], [0, 1]
    ])  # fmt: skip
    assert packed.ids_N.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert packed.positions_N.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 0, 1]
    assert packed.wanted_M.tolist() == [3, 4, 5, 8, 10]
    # Both responses to the first prompt begin where its last token, number 2, says what follows.
    assert packed.before_M.tolist() == [2, 3, 2, 7, 9]
    assert packed.last_B.tolist() == [4, 5, 8, 10]
    assert packed.targets_M.tolist() == [8, 9, 10, 13, 15]
    assert packed.mask_BT.tolist() == [[True, True], [True, False], [True, False], [True, False]]
    assert packed.spread(torch.arange(1.0, 6.0)).tolist() == [[1, 2], [3, 0], [4, 0], [5, 0]]
    assert [part.tolist() for part in packed.split(torch.arange(5))] == [[0, 1], [2], [3], [4]]


@pytest.mark.parametrize("name", MODELS)
def test_packed_responses_have_the_logprobs_and_the_gradient_that_they_have_alone(name: str) -> None:
    responses, model = some_responses(), MODELS[name]()
    wanted = masks(responses)
    weights = [0.3 * (-1) ** i * (1 + i) for i in range(len(responses))]
    packed = pack(responses, wanted=wanted)
    together = packed.split(predicted_logprobs(model, packed, temperature=0.8))
    torch.stack([weight * part.sum() for weight, part in zip(weights, together, strict=True)]).sum().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    for weight, response, mask, part in zip(weights, responses, wanted, together, strict=True):
        own = alone(model, response, mask, temperature=0.8)
        torch.testing.assert_close(part.detach(), own.detach(), atol=1e-5, rtol=1e-5)
        (weight * own.sum()).backward()
    for key, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[key], parameter.grad, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("changed", range(6))
def test_nothing_of_one_response_is_seen_by_another(changed: int) -> None:
    responses, model = some_responses(), micro_model()

    def logprobs(responses: list[Response]) -> list[Tensor]:
        packed = pack(responses)
        with torch.no_grad():
            return list(packed.split(predicted_logprobs(model, packed, temperature=1.0)))

    responses = responses[:-2]
    before = logprobs(responses)
    prompt, own = responses[changed]
    responses[changed] = (prompt, tuple(64 - token + 2 for token in own))
    after = logprobs(responses)
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
    assert same == [number != changed for number in range(len(responses))]


def test_order_and_company_do_not_matter() -> None:
    responses, model = some_responses()[:-2], micro_model()
    mixed = random.Random(0).sample(responses, len(responses))
    values = {}
    for some in (responses, mixed):
        packed = pack(some)
        with torch.no_grad():
            parts = packed.split(predicted_logprobs(model, packed, temperature=1.0))
        for response, part in zip(some, parts, strict=True):
            torch.testing.assert_close(part, values.setdefault(response, part), atol=1e-5, rtol=1e-5)


def test_a_text_without_a_prompt_has_no_first_token_to_predict() -> None:
    with pytest.raises(ValueError, match="first token"):
        pack([((), (3, 4))])


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 ids and 3 mask entries"):
        pack([((5,), (3, 4))], wanted=[[1, 1, 1]])


def test_an_empty_response_is_read_at_its_prompts_end() -> None:
    packed = pack([((5, 6), ()), ((5, 6), (7,))])
    assert packed.last_B.tolist() == [1, 2]
    assert packed.counts == (0, 1)


class _Pooling(nn.Module):
    """A body without attention: each token sees the mean of the row."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.config = body.get_input_embeddings(), body.config

    def forward(self, input_ids: Tensor, **unused: object) -> Any:
        return SimpleNamespace(last_hidden_state=self.embed(input_ids).mean(1, keepdim=True))


def test_a_model_that_attends_in_its_own_way_is_refused() -> None:
    body = micro_model().get_decoder()
    with pytest.raises(ModelError, match=r"0 of 2 layers"):
        packed_hidden(_Pooling(body).eval(), pack([((5,), (3, 4))]))


def test_a_window_shorter_than_a_sequence_is_refused() -> None:
    model = micro_model()
    for layer in model.get_decoder().layers:
        layer.self_attn.sliding_window = 6
    short, long = pack([((5, 6), (3, 4)), ((5, 6), (7, 8))]), pack([((5, 6, 7, 8), (3, 4, 5)), ((5, 6, 7, 8), (3,))])
    packed_hidden(model.get_decoder(), short)
    with pytest.raises(ModelError, match=r"sliding window of 6 tokens.*has 7"):
        packed_hidden(model.get_decoder(), long)


def test_in_every_other_call_the_model_attends_as_before() -> None:
    model, used = micro_model(), micro_model()
    packed_hidden(used.get_decoder(), pack([((5,), (3, 4))]))
    ids_BT, mask_BT = pad([[3, 4, 5, 6], [7, 8]])
    with torch.no_grad():
        for arguments in ({}, {"attention_mask": mask_BT}, {"attention_mask": mask_BT.flip(1)}):
            logits = [some(input_ids=ids_BT, **arguments).logits for some in (model, used)]
            assert torch.equal(*logits)


def test_threads_may_share_a_model() -> None:
    """As the canaries of several servers do."""
    model, responses = micro_model(), some_responses()

    def logprobs(number: int) -> Tensor:
        packed = pack(responses[number : number + 4])
        with torch.no_grad():
            return predicted_logprobs(model, packed, temperature=1.0)

    wanted = [logprobs(number % 5) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for a, b in zip(wanted, threads.map(lambda number: logprobs(number % 5), range(40)), strict=True):
            assert torch.equal(a, b)


# How micro-batches are made.


def item(prompt: int, *responses: int) -> list[Response]:
    """Responses of these lengths to a prompt of ten tokens, which `prompt` tells from others."""
    return [((prompt,) * 10, (1,) * length) for length in responses]


def test_items_with_one_prompt_stay_together_and_count_it_once() -> None:
    items = [item(1, 5), item(2, 9), item(1, 4), item(2, 9)]
    # 10 + 9 + 9, and 10 + 5 + 4: together 47.
    assert plan(items, tokens=47) == [[1, 3, 0, 2]]
    assert plan(items, tokens=46) == [[1, 3], [0, 2]]


def test_a_group_beyond_the_budget_is_split_and_its_prompt_counted_again() -> None:
    items = [item(1, 10) for _ in range(5)]
    # 10 + 10 + 10 fit into 39; the prompt comes with each of the three parts.
    assert plan(items, tokens=39) == [[0, 1], [2, 3], [4]]


def test_the_responses_of_an_item_are_not_parted_and_one_beyond_the_budget_stands_alone() -> None:
    items = [item(1, 3, 4), item(2, 30, 30), item(3, 2, 5)]
    assert plan(items, tokens=34) == [[1], [2, 0]]


def test_texts_without_a_prompt_are_taken_longest_first() -> None:
    items: list[list[Response]] = [[((), (1,) * length)] for length in (5, 9, 3, 8, 4, 1)]
    assert plan(items, tokens=16) == [[1], [3, 0], [4, 2, 5]]


def test_a_plan_holds_everything_once() -> None:
    rng = random.Random(1)
    items = [item(rng.randrange(20), rng.randint(1, 40)) for _ in range(200)]
    batches = plan(items, tokens=120)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        prompts = {items[i][0][0] for i in batch}
        assert 10 * len(prompts) + sum(len(items[i][0][1]) for i in batch) <= 120
