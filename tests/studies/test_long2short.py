import dataclasses
import json

import pytest

from posttrain.config import ConfigError, load_params
from posttrain.engine.policy import save_policy
from posttrain.evals.intervals import resample
from posttrain.evals.readme import block_of
from posttrain.files import rounded
from posttrain.system import System
from studies.long2short.__main__ import run
from studies.long2short.arms import ARMS, Bench
from studies.long2short.measure import outcome
from studies.long2short.page import NOTHING, PAGE, REPORT, block
from studies.long2short.plan import ON_LENGTH, STUDY, dpo_section, load_study, long_section, short_section
from tests.loops.samples import made
from tests.loops.toy import GENERATION, PROBLEMS, start_policy

PARAMS = load_params()


def test_the_long_model_is_trained_without_any_term_on_length():
    section = long_section(PARAMS.grpo, load_study().long)
    assert not ON_LENGTH & set(section.rewards)
    assert set(section.rewards) == set(PARAMS.grpo.rewards) - ON_LENGTH
    assert section.generation == PARAMS.grpo.generation and section.objective == PARAMS.grpo.objective


def test_the_rl_arm_differs_from_it_by_the_length_term_and_the_limit():
    study = load_study()
    long, short = long_section(PARAMS.grpo, study.long), short_section(PARAMS.grpo, study.rl)
    assert set(short.rewards) - set(long.rewards) == {"length"}
    assert (short.rewards["length"].start, short.rewards["length"].ramp) == (0, 0)
    assert short.generation.max_new_tokens < long.generation.max_new_tokens
    method = dpo_section(PARAMS.align, study.dpo).method
    assert (method.kind, method.beta, method.sft_weight) == ("dpo", study.dpo.beta, study.dpo.sft_weight)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("share: 0.5", "share: 1.5", "merge.share: got 1.5; wanted: less than or equal to 1"),
        ("share: 0.5", "shaer: 0.5", "merge.shaer: got 0.5; wanted: no such key"),
        ("length_weight: 0.6", "length_weight: 0", "rl.length_weight: got 0; wanted: greater than 0"),
    ],
)
def test_wrong_numbers_are_named(tmp_path, old, new, said):
    path = tmp_path / "params.yaml"
    text = STUDY.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_study(path)


def test_outcome_by_hand():
    """Two questions of two samples: 3 of 4 right; right ones of 10, 20 and 30 tokens, the wrong one of 40."""
    counts_RQ = resample(2, draws=50, seed=0)
    groups = [[made(10), made(20)], [made(30), made(40, status="wrong")]]
    start = [[made(10), made(20, status="wrong")], [made(30), made(40)]]
    values = {name: value["value"] for name, value in outcome(groups, start, counts_RQ).items()}
    assert values == {
        "accuracy": 0.75,
        "tokens_right": 20.0,
        "tokens": 25.0,
        "efficiency": 30.0,  # 3 right answers in 100 tokens
        "difference": 0.0,  # +0.5 and -0.5
    }
    assert outcome(start, start, counts_RQ)["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    nothing = [[made(5, status="wrong")]]
    assert outcome(nothing, nothing, resample(1, draws=5, seed=0))["tokens_right"] is None


def bench(folder):
    """The study in the toy world, where half of the answers are right."""
    numbers = {"epochs": 1.0, "batch_tokens": 128, "sequence_length": 128}
    study = load_study()
    solved = [dataclasses.replace(p, metadata={"solution": "so"}) for p in PROBLEMS]
    changed = {
        "long": study.long.model_copy(update={"steps": 1, "curriculum_steps": 0}),
        "short": study.short.model_copy(update=numbers),
        "tuned": study.tuned.model_copy(update=numbers),
        "rl": study.rl.model_copy(update={"steps": 1, "max_new_tokens": 20}),
        "samples": study.samples.model_copy(update={"problems": 4, "per_problem": 16, "generation": GENERATION}),
        "evaluate": study.evaluate.model_copy(update={"samples": 4, "bootstrap": 50}),
    }
    grpo = PARAMS.grpo.model_copy(update={"prompts_per_step": 4, "generation": GENERATION})
    return Bench(
        params=PARAMS.model_copy(update={"grpo": grpo}),
        study=study.model_copy(update=changed),
        machine=System(),
        seed=3,
        train=solved,
        graded=PROBLEMS,
        heldout=PROBLEMS,
        work=folder / "work",
        log=lambda metrics, step: None,
    )


def test_every_arm_runs_from_the_same_long_model(tmp_path, monkeypatch):
    for name in ("base", "sft"):
        save_policy(start_policy(), tmp_path / "models" / name)
    toy = bench(tmp_path)
    monkeypatch.chdir(tmp_path)
    report = rounded(run(toy))
    assert list(report["models"]) == ["long", "short", *ARMS]
    assert report["models"]["long"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for name, values in report["models"].items():
        assert 0.0 <= values["accuracy"]["low"] <= values["accuracy"]["value"] <= values["accuracy"]["high"] <= 1.0, (
            name
        )
    text = block(report)
    assert text.count("\n| ") == len(ARMS) + 3 and "4 held-out questions, 4 samples each" in text


def test_the_page_shows_the_report():
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.is_file() else None
    assert block_of(PAGE.read_text(encoding="utf-8")) == block(report)
    assert block(None) == NOTHING
