"""The in-process sampler against transformers' own generate and against the trainer's log-probabilities."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedModel

from posttrain.config import Generation
from posttrain.engine import canary, rollout_transformers
from posttrain.engine.canary import check_canary, largest_difference
from posttrain.engine.policy import Policy
from posttrain.engine.rollout import Request
from posttrain.engine.rollout_transformers import TransformersEngine
from posttrain.errors import ModelError, StageError
from posttrain.records import Rollout
from tests.engine.conftest import EOS, PAD, VOCAB, llama_model, micro_model, micro_tokenizer


def engine_of(model: PreTrainedModel, batch: int = 64) -> TransformersEngine:
    return TransformersEngine(Policy(model, micro_tokenizer()), batch=batch, tolerance=1e-4)


def prompts(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [Request(f"p{i}", tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 14)))) for i in range(count)]


@pytest.mark.parametrize("model", [micro_model(scale=2.0), llama_model()], ids=["qwen3", "llama"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_logprobs_are_those_of_the_trainer(model: PreTrainedModel, temperature: float) -> None:
    generation = Generation(temperature=temperature, max_new_tokens=70)
    # Several stop ids, so that rows end at different times, leave, and the room for the cache is enlarged.
    rollouts = engine_of(model).generate(prompts(7), samples=3, generation=generation, seed=4, stop_ids=(2, 3))
    assert largest_difference(rollouts, model, temperature=temperature or 1.0) < 1e-4
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 3 or temperature == 0


def test_bf16_attends_to_what_is_there() -> None:
    # Own tokens are attended to by multiples of 64: here with a whole multiple and a part of one, and rows that left.
    model = micro_model(scale=2.0).to(torch.bfloat16)
    generation = Generation(temperature=1.0, max_new_tokens=70)
    rollouts = engine_of(model).generate(prompts(7), samples=3, generation=generation, seed=4, stop_ids=(2,))
    longest = max(len(rollout.response_ids) for rollout in rollouts)
    assert 64 < longest
    exact = micro_model(scale=2.0).to(torch.bfloat16).float()
    # The rounding of bf16 alone, which does not grow with the room that is left.
    assert largest_difference(rollouts, exact, temperature=1.0) < 0.1


@pytest.mark.parametrize("model", [micro_model(), llama_model()], ids=["qwen3", "llama"])
def test_greedy_equals_generate_of_transformers(model: PreTrainedModel) -> None:
    generation = Generation(temperature=0.0, max_new_tokens=40)
    for request, rollout in zip(
        prompts(4), engine_of(model).generate(prompts(4), samples=1, generation=generation, seed=0), strict=True
    ):
        wanted = model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=40, do_sample=False, eos_token_id=EOS, pad_token_id=PAD
        )
        assert rollout.response_ids == tuple(wanted[0, len(request.prompt_ids) :].tolist())


def test_order_finish_and_versions() -> None:
    engine = engine_of(micro_model(scale=1.0), batch=5)
    engine.version = 7
    stops = tuple(range(2, 6))
    requests = prompts(6)
    generation = Generation(temperature=1.0, max_new_tokens=12)
    rollouts = engine.generate(requests, samples=3, generation=generation, seed=1, stop_ids=stops)
    assert [rollout.problem_id for rollout in rollouts] == [r.problem_id for r in requests for _ in range(3)]
    assert [rollout.prompt_ids for rollout in rollouts] == [r.prompt_ids for r in requests for _ in range(3)]
    assert {rollout.finish for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.response_ids) == len(rollout.version_per_token)
        assert set(rollout.version_per_token) == {7}
        assert not set(rollout.response_ids[:-1]) & set(stops)
        assert (rollout.response_ids[-1] in stops) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(rollout.response_ids) == 12


def test_the_default_stop_is_the_end_token_of_the_tokenizer() -> None:
    generation = Generation(temperature=1.0, max_new_tokens=60)
    rollouts = engine_of(micro_model(scale=1.0)).generate(prompts(8), samples=4, generation=generation, seed=3)
    assert {r.response_ids[-1] for r in rollouts if r.finish == "stop"} == {EOS}


def test_responses_depend_on_the_seed_and_not_on_the_company() -> None:
    model = micro_model(scale=1.0)
    generation = Generation(temperature=1.0, max_new_tokens=20)

    def ids(batch: int, seed: int, samples: int = 4) -> list[tuple[int, ...]]:
        rollouts = engine_of(model, batch).generate(prompts(9), samples=samples, generation=generation, seed=seed)
        return [rollout.response_ids for rollout in rollouts]

    together = ids(64, seed=0)
    assert together == ids(64, seed=0)
    assert together == ids(5, seed=0) == ids(3, seed=0), "batches of other sizes, groups split over batches"
    assert together != ids(64, seed=1)
    assert len(set(together)) > 30, "samples of a group are drawn independently"


def test_global_generator_and_model_mode_are_left_alone() -> None:
    model = micro_model().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    engine_of(model).generate(prompts(2), samples=2, generation=Generation(temperature=1.0, max_new_tokens=4), seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ModelError, match=r"problem long.*100 prompt tokens and 40 new ones.*128"):
        engine_of(micro_model()).generate(
            [Request("long", (5,) * 100)], samples=1, generation=Generation(temperature=1.0, max_new_tokens=40), seed=0
        )


def test_canary_passes_for_the_shared_model_and_sees_changes_in_training() -> None:
    model = micro_model()
    engine = engine_of(model)
    engine.load_weights(model, 3)
    assert engine.version == 3
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.3)
    assert check_canary(engine.generate, model, version=engine.version, tolerance=1e-4) < 1e-4, (
        "in process the weights are shared"
    )


def test_canary_catches_stale_weights() -> None:
    stale, trained = micro_model(scale=2.0), micro_model(scale=2.0)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    engine = engine_of(stale)
    with pytest.raises(StageError, match=r"version 0 failed.*canary_tolerance"):
        check_canary(engine.generate, trained, version=engine.version, tolerance=1e-3)


def test_canary_difference_is_the_largest_over_sampled_tokens() -> None:
    model = micro_model()
    requests = canary.canary_requests(VOCAB)
    rollouts = engine_of(model).generate(requests, samples=1, generation=canary._GREEDY, seed=0, stop_ids=())
    first = rollouts[0]
    changed = Rollout(
        first.problem_id,
        first.prompt_ids,
        first.response_ids,
        (first.logprobs[0] - 0.25, *first.logprobs[1:]),
        first.finish,
        first.version_per_token,
    )
    assert largest_difference([changed, *rollouts[1:]], model) == pytest.approx(0.25, abs=1e-4)


def test_plan_keeps_groups_together_and_every_sample_once() -> None:
    requests = [Request(str(i), (5,) * n) for i, n in enumerate((3, 9, 5, 9))]
    batches = rollout_transformers._plan(requests, range(len(requests)), samples=4, batch=8)
    assert [[(p.request, p.first, p.count) for p in batch] for batch in batches] == [
        [(1, 0, 4), (3, 0, 4)],
        [(2, 0, 4), (0, 0, 4)],
    ]
    split = rollout_transformers._plan(requests, range(1), samples=7, batch=3)
    assert [[(p.first, p.count) for p in batch] for batch in split] == [[(0, 3)], [(3, 3)], [(6, 1)]]
