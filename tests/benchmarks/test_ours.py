"""Our side of every case does its steps, whether the peer is installed or not."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import ours
from benchmarks.settings import CASES, load_settings
from benchmarks.worker import WHOLE, Order, make_work
from benchmarks.world import engine_of, profile_params
from tests.benchmarks.toy_work import values_of


@pytest.mark.parametrize("case", CASES)
def test_our_side_takes_its_steps(case, work):
    first, second = values_of(ours.RUNS, case, work)
    if case == "generate":
        assert len(first) == 4 * 8 and second == []
    else:
        (loss, norm), (_, later) = first, second
        assert math.isfinite(loss) and norm > 0.01 and later != norm


@pytest.mark.parametrize("gpu", [False, True])
def test_a_pass_is_the_profiles_unless_a_case_or_a_gpu_says_otherwise(folder, tmp_path, monkeypatch, gpu):
    settings = Path("benchmarks/params.yaml")
    cases = load_settings(settings).models["smollm2"].cases
    assert cases["grpo"].pass_tokens is not None and cases["grpo_update"].pass_tokens is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    def tokens(case):
        order = Order("ours", str(settings), "smollm2", case, str(folder), "bf16", 1, 1)
        return make_work(order, tmp_path).params.engine.micro_batch_tokens

    assert tokens("grpo") == (WHOLE if gpu else cases["grpo"].pass_tokens)
    assert tokens("grpo_update") == (WHOLE if gpu else profile_params("smollm2").engine.micro_batch_tokens)


def test_in_bf16_sampler_and_trainer_may_differ_by_more():
    params = profile_params("tiny")
    assert engine_of(params, "fp32").canary_tolerance == params.engine.canary_tolerance
    assert engine_of(params, "bf16").canary_tolerance == profile_params("smollm2").engine.canary_tolerance
