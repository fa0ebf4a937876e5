"""What an arm measures: accuracy and lengths against sft, divergence and entropy, and what it cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain import config
from posttrain.engine.rollout import Request
from posttrain.evals.forms import ChatForm
from posttrain.evals.rows import ModeSamples
from posttrain.loops.policy_training import train_policy
from posttrain.records import Problem, Rollout
from studies.objectives.measure import divergence, outcome
from studies.objectives.meter import Meter
from tests.loops import toy

HELDOUT = [Problem(f"h{i}", problem.prompt, "7", "exact", "toy", "toy") for i, problem in enumerate(toy.PROBLEMS)]


def samples(correct: tuple[bool, ...], tokens: tuple[int, ...]) -> ModeSamples:
    size = len(correct)
    return ModeSamples(
        answers=("7",) * size,
        correct=correct,
        tokens=tokens,
        thinking_tokens=tokens,
        finish=("stop",) * size,
        well_formed=(True,) * size,
        mixed=(False,) * size,
        text="",
    )


def test_outcome_by_hand() -> None:
    before = [samples((True, False), (10, 20)), samples((False, False), (30, 40))]
    after = [samples((True, True), (10, 12)), samples((True, False), (14, 50))]
    result = outcome(after, before, bootstrap=500, seed=1)
    assert result["sft"]["accuracy"]["value"] == 0.25
    assert result["end"]["accuracy"]["value"] == 0.75
    assert (result["sft"]["tokens_correct"], result["sft"]["tokens_wrong"]) == (10, 30)
    assert (result["end"]["tokens_correct"], result["end"]["tokens_wrong"]) == (12, 50)
    # Both questions gained one half, so that no draw of questions gives another difference.
    assert result["difference"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_lengths_of_what_there_is_none_of() -> None:
    never = [samples((False, False), (10, 20))]
    result = outcome(never, never, bootstrap=10, seed=1)
    assert result["end"]["tokens_correct"] is None
    assert result["difference"]["value"] == 0.0


def test_divergence_against_whole_forward_passes_and_in_any_split() -> None:
    policy, reference = toy.start_policy(), toy.start_policy()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(0.9)
    form = ChatForm(policy.tokenizer)
    requests = [Request(problem.id, form.prompt(problem, "think")) for problem in HELDOUT]
    rollouts = toy.sampler_of(policy).generate(
        requests, samples=2, generation=toy.GENERATION, seed=3, stop_ids=form.stop_ids
    )
    kl = entropy = tokens = 0.0
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        with torch.no_grad():
            own, other = (
                torch.distributions.Categorical(
                    logits=side.model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1]
                )
                for side in (policy, reference)
            )
        kl += float(torch.distributions.kl_divergence(own, other).sum())
        entropy += float(own.entropy().sum())
        tokens += len(rollout.response_ids)
    for micro_batch_tokens in (64, 4096):
        found = divergence(
            policy.model, reference.model, rollouts, temperature=1.0, micro_batch_tokens=micro_batch_tokens
        )
        assert found["kl"] == pytest.approx(kl / len(rollouts), rel=1e-3)
        assert found["entropy"] == pytest.approx(entropy / tokens, rel=1e-3)
    same = divergence(policy.model, policy.model, rollouts, temperature=1.0, micro_batch_tokens=4096)
    assert same["kl"] == 0.0


def metered_run(section: config.Rl, folder: Path, stop_after: int | None) -> tuple[dict, Meter, toy.Journal]:
    """The toy policy trained with a meter on its sampler; every step takes two seconds."""
    folder.mkdir(exist_ok=True)
    policy = toy.start_policy()
    meter = Meter(toy.sampler_of(policy), heldout=[problem.id for problem in HELDOUT], journal=folder / "cost.jsonl")
    seen = toy.Journal(stop_after)

    def log(metrics: dict[str, float], step: int) -> None:
        if "time/step" in metrics:
            meter.step({**metrics, "time/step": 2.0}, step)
        seen(metrics, step)

    report = train_policy(
        policy,
        toy.PROBLEMS,
        HELDOUT,
        section=section,
        rollouts=meter,
        engine=toy.ENGINE,
        seed=5,
        log=log,
        checkpoints=folder,
    )
    return report, meter, seen


def test_the_meter_counts_training_alone_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    """4 prompts x 8 samples in each of 6 steps; interrupted in step 5, whose first attempt does not count."""
    section = toy.rl_section("dr_grpo")

    with pytest.raises(KeyboardInterrupt):
        metered_run(
            section, tmp_path, 6
        )  # looks before the first step, then five steps, of which four are in a checkpoint
    report, meter, seen = metered_run(section, tmp_path, None)
    assert list(report["heldout"]) == ["0", "2", "4", "6"]
    assert report["length_reward_start"] is None, "no length term, so nothing starts"
    assert [step for step, _ in seen.rows] == [5, 6]
    assert meter.total()["responses"] == 6 * 4 * 8
    assert meter.total()["seconds"] == 12.0
    rows = [json.loads(line) for line in (tmp_path / "cost.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6]
    assert rows[4] == rows[5], "the same samples again"
    assert meter.total()["tokens"] == sum(row["tokens"] for row in rows) - rows[4]["tokens"]


def test_an_arm_without_rl_samples_as_much_and_counts_it_once(tmp_path: Path) -> None:
    """rft: 6 steps x 4 prompts x 8 samples are 48 for each of 4 problems; one interrupted in step 3 samples again."""
    numbers = {"max_per_problem": 4, "epochs": 6.0, "batch_tokens": 64, "sequence_length": 64}
    section = toy.rl_section("rft", objective=toy.objective()["objective"], rft=numbers)

    report, meter, seen = metered_run(section, tmp_path / "whole", None)
    steps = report["steps"]
    assert meter.total()["responses"] == report["sampled"] == 6 * 4 * 8
    assert list(report["heldout"]) == ["0", str(steps)]
    assert [step for step, _ in seen.rows] == [*range(steps + 1), steps], "a look, the steps, a look"
    assert seen.rows[-1][1]["eval/accuracy"] == report["heldout"][str(steps)]["accuracy"]
    with pytest.raises(KeyboardInterrupt):
        metered_run(section, tmp_path / "cut", 4)
    again, resumed, rest = metered_run(section, tmp_path / "cut", None)
    assert again == report and [step for step, _ in rest.rows][:2] == [0, 3]
    for key in ("responses", "tokens"):
        assert resumed.total()[key] == meter.total()[key]
    assert resumed.total()["seconds"] > 0


class Sampler:
    """Answers every request with three tokens; each call takes as long as the clock below says."""

    version = 0

    def generate(self, requests, *, samples, generation, seed, stop_ids=None):
        one = (1, 2, 3)
        return [
            Rollout(r.problem_id, (9,), one, (0.0,) * 3, "stop", (0,) * 3) for r in requests for _ in range(samples)
        ]

    def load_weights(self, model, version):
        self.version = version

    def close(self):
        pass


def test_seconds_of_sampling_count_once_wherever_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.0, 20.0, 29.0, 40.0, 45.0])  # 3 s of training samples, 9 s of a look, 5 s of training samples
    monkeypatch.setattr("studies.objectives.meter.time.perf_counter", lambda: next(now))
    meter = Meter(Sampler(), heldout=["h0"], journal=tmp_path / "cost.jsonl")

    def sample(problem: str) -> None:
        meter.generate([Request(problem, (9,))], samples=4, generation=toy.GENERATION, seed=1)

    sample("p0")
    sample("h0")
    meter.step({"time/step": 1.0}, 1)  # supervised steps on what was sampled before them
    sample("p0")
    meter.step({"time/step": 7.0, "time/generate": 5.0}, 2)
    meter.step({"time/step": 2.0}, 3)
    assert meter.total() == {"seconds": 3.0 + 1.0 + 7.0 + 2.0, "responses": 8, "tokens": 24}
