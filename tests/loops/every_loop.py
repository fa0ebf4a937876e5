"""Every training loop for a few steps in the toy world.

python -m tests.loops.every_loop FOLDER PROCESSES [LOOP ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.chat.template import encode_example
from posttrain.engine.distributed import rank
from posttrain.engine.policy import Policy
from posttrain.loops.rft import run_rft
from posttrain.loops.rl import run_rl
from posttrain.loops.sft import run_sft
from posttrain.ranks import start_ranks
from posttrain.records import Conversation, Message
from tests.loops import test_distill, test_preference, test_reward_model
from tests.loops.toy import (
    ENGINE,
    GENERATION,
    PROBLEMS,
    QUESTIONS,
    Journal,
    optimizer,
    rl_section,
    sampler_of,
    start_policy,
    weights_of,
)

Loop = Callable[[Path, Journal], tuple[Any, dict[str, Any]]]


def sft(zero_stage: int = 0, epochs: float = 2.0) -> Loop:
    """Some steps have a single row, so that a second rank has none."""

    def loop(folder: Path, journal: Journal) -> tuple[Any, dict[str, Any]]:
        policy = start_policy()
        turns = [(Message("user", q), Message("assistant", "\\boxed{7}", thinking="so")) for q in QUESTIONS]
        examples = [encode_example(policy.tokenizer, Conversation("c", "p", turn, "think")) for turn in turns]
        summary = run_sft(
            policy,
            examples,
            optimizer=optimizer(),
            epochs=epochs,
            batch_tokens=60,
            sequence_length=64,
            engine=ENGINE.model_copy(update={"zero_stage": zero_stage}),
            seed=3,
            log=journal,
            checkpoints=folder,
            save_every=2,
        )
        return policy, summary

    return loop


def rl(name: str, zero_stage: int = 0, **changes: Any) -> Loop:
    def loop(folder: Path, journal: Journal) -> tuple[Any, dict[str, Any]]:
        policy = start_policy()
        summary = run_rl(
            policy,
            PROBLEMS,
            section=rl_section(name, **({"steps": 3} | changes)),
            rollouts=sampler_of(policy),
            engine=ENGINE.model_copy(update={"zero_stage": zero_stage}),
            seed=5,
            log=journal,
            checkpoints=folder,
            measure=dict,
            measure_at=(),
        )
        return policy, summary

    return loop


def rft(folder: Path, journal: Journal) -> tuple[Any, dict[str, Any]]:
    policy = start_policy()
    summary = run_rft(
        policy,
        PROBLEMS,
        samples=8,
        max_per_problem=2,
        epochs=2.0,
        batch_tokens=128,
        sequence_length=64,
        optimizer=optimizer(),
        generation=GENERATION,
        rollouts=sampler_of(policy),
        engine=ENGINE,
        seed=5,
        log=journal,
        checkpoints=folder,
        save_every=100,
    )
    return policy, summary


LOOPS: dict[str, Loop] = {
    "sft": sft(),
    "sft, ZeRO 1": sft(zero_stage=1),
    "sft, ZeRO 3": sft(zero_stage=3),
    "dr_grpo": rl("dr_grpo"),
    "dr_grpo, ZeRO 2": rl("dr_grpo", zero_stage=2),
    "dr_grpo, ZeRO 3": rl("dr_grpo", zero_stage=3),
    "ppo": rl("ppo", steps=5),
    "dapo, several steps": rl("dapo", epochs=2, minibatches=2),
    "rft": rft,
    "reward_model": lambda folder, journal: test_reward_model.train(folder, journal),
    "dpo": lambda folder, journal: test_preference.train(folder, journal),
    "kto": lambda folder, journal: test_preference.train(folder, journal, "kto"),
    "distill": lambda folder, journal: test_distill.train(folder, journal),
}

LONG: dict[str, Loop] = {
    "long sft": sft(epochs=30.0),
    "long dr_grpo": rl("dr_grpo", steps=14),
    "long ppo": rl("ppo", steps=14),
    "long dpo": lambda folder, journal: test_preference.train(folder, journal, epochs=16.0),
    "long distill": lambda folder, journal: test_distill.train(folder, journal, on_policy_steps=20),
}
"""Long enough to be killed in the middle, after a checkpoint; asked for by name."""

AHEAD = {
    "one step off": "one_step_off",
    "async": {"kind": "async", "max_staleness": 2, "partial": "none"},
    "segments": {
        "kind": "async",
        "max_staleness": 3,
        "partial": {"kind": "budget", "tokens": 8, "batches": 2, "train": "all"},
    },
}
ALONE: dict[str, Loop] = {
    f"long {name}": rl("dr_grpo", steps=14, asynchrony=mode, mismatch_budget=100.0) for name, mode in AHEAD.items()
}
"""As LONG, for one process."""


def run(name: str, folder: Path) -> dict[str, Any]:
    """Weights, summary and what was logged at every step, but for times."""
    journal = Journal()
    trained, summary = (LOOPS | LONG | ALONE)[name](folder / name, journal)
    weights = weights_of(trained) if isinstance(trained, Policy) else dict(trained.state_dict())
    steady = [
        {key: value for key, value in metrics.items() if not key.startswith(("time/", "perf/"))}
        for _, metrics in journal.rows
    ]
    return {"weights": weights, "summary": summary, "steps": steady}


def start(folder: Path, *names: str, processes: int = 2) -> subprocess.Popen[str]:
    """This program on some processes; all of LOOPS without names."""
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.loops.every_loop", str(folder), str(processes), *names],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = start_ranks(int(sys.argv[2]), folder / "ranks")
    for name in sys.argv[3:] or LOOPS:
        torch.save(run(name, folder / "work"), folder / f"{name}-{rank()}.pt")
    ranks.wait()


if __name__ == "__main__":
    main()
