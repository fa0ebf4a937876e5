"""The work of every case on a toy size. The cases against TRL are collected where extra `bench` is installed."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.settings import Size
from benchmarks.world import Work, made_up_tokenizer, make_groups, plain_tokens, profile_params
from posttrain.engine.policy import Policy, build_micro, save_policy
from tests.loops.toy import MICRO

collect_ignore = [] if importlib.util.find_spec("trl") else ["test_cases.py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = made_up_tokenizer(400)
    ends = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    target = tmp_path_factory.mktemp("policy")
    save_policy(Policy(build_micro(MICRO, vocab_size=len(tokenizer), **ends, seed=1), tokenizer), target)
    return target


@pytest.fixture
def work(folder, tmp_path):
    size = Size(prompts=4, group=2, prompt_tokens=6, response_tokens=8, spread=0.5, steps=1, peer_batch=(2,))
    return Work(
        folder=folder,
        params=profile_params("tiny"),
        size=size,
        groups=make_groups(size, plain_tokens(made_up_tokenizer(400)), seed=3),
        precision="fp32",
        peer_batch=2,
        sequence_length=32,
        lr=0.001,
        steps=5,
        seed=7,
        scratch=tmp_path,
    )
