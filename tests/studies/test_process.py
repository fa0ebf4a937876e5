"""The study of process rewards: strict numbers, a report from a scripted policy, and a page that says what it says."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from posttrain.config import ConfigError
from posttrain.config_rl import ModelledSteps
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.evals.readme import block_of
from posttrain.files import rounded
from posttrain.loops.steps import make_step_scorer
from studies.process.__main__ import save_whole
from studies.process.page import NAMES, NOTHING, results
from studies.process.settings import load_settings
from studies.process.study import Study
from tests.loops.toy import ENGINE
from tests.loops.worked import PROBLEM, TOKENS, Scripted, micro_policy, worked_samples

ROOT = Path(__file__).parents[2]
FILE = ROOT / "studies/process/params.yaml"
SMALL = {
    "generation": TOKENS.model_dump(),
    "labels": {"problems": 4, "samples": 4, "completions": 3},
    "rerank": {"problems": 5, "samples": 8, "at": [1, 4, 8], "aggregate": "min", "step_samples": 4},
    "bootstrap": 50,
}


def settings(folder, **changes):
    values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return load_settings(path)


def small(folder):
    search = {"problems": 3, "at": [4], "label": "soft", "rule": "puct", "exploration": 0.5, "width": 6}
    training = yaml.safe_load(FILE.read_text(encoding="utf-8"))["training"]
    training |= {"epochs": 8, "batch_responses": 4, "optimizer": training["optimizer"] | {"lr": 0.003}}
    policy = micro_policy()
    save_policy(Policy(with_scalar_head(policy.model, seed=0), policy.tokenizer), folder / "reward_model")
    return settings(
        folder,
        search=search | {"reserve": 20, "simulations": 20},
        training=training,
        reward_model=str(folder / "reward_model"),
        **SMALL,
    )


def copies(name, count):
    return [dataclasses.replace(PROBLEM, id=f"{name}{i}") for i in range(count)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    numbers = small(tmp_path_factory.mktemp("study"))
    study = Study(numbers, micro_policy(), Scripted(), ENGINE, lambda text: None)
    return study, rounded(study.run(copies("t", 4), copies("h", 6)))


@pytest.fixture(scope="module")
def report(ran):
    return ran[1]


def test_the_committed_numbers_are_valid():
    assert load_settings(FILE).rerank.at == (1, 4, 16, 64)


def test_wrong_numbers_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"params.yaml: policy: got 3; wanted: .*string"):
        settings(tmp_path, policy=3)
    with pytest.raises(ConfigError, match=r"unknown: got 1; wanted: Extra inputs are not permitted"):
        settings(tmp_path, unknown=1)
    with pytest.raises(ConfigError, match=r"rerank: .* every N must divide samples \(8\)"):
        settings(tmp_path, **SMALL | {"rerank": SMALL["rerank"] | {"at": [3]}})
    with pytest.raises(ConfigError, match="search: at and problems must be among those of rerank"):
        settings(tmp_path, rerank=SMALL["rerank"])
    with pytest.raises(ConfigError, match=r"absent.yaml"):
        load_settings(tmp_path / "absent.yaml")


def test_the_report_of_a_scripted_policy(report):
    assert report["questions"] == 5
    labels, steps = report["labels"], report["steps"]
    assert labels["responses"] == 16 and labels["steps"] > 16 * 3
    # Every way has its answer as last step, and right steps are worth more than wrong ones.
    assert labels["auroc"]["soft"]["value"] > 0.8 and steps["auroc"]["prm_soft"]["value"] > 0.8
    table = report["rerank"]
    assert {"best_orm", "weighted_orm"} <= set(table) <= set(NAMES)
    assert 0.0 < table["best_orm"]["1"]["score"] <= table["best_orm"]["8"]["score"] < 1.0
    for size in ("1", "4", "8"):
        # The checker finds the right one among the three ways whenever it is there.
        assert table["best_checker"][size]["accuracy"] == table["oracle"][size]["accuracy"]
    assert set(report["aggregations"]) == {"min", "product", "mean", "last"}
    found = report["search"]["checker"]["4"]
    assert found["accuracy"]["value"] == 1.0 and min(found["tokens"], found["tokens_scored"]) > 0


def test_its_models_are_what_an_objective_reads(ran, tmp_path):
    """Saved over an older one and loaded as stage grpo does, a model scores as it did in the study."""
    study, _ = ran
    assert set(study.models) == {"soft", "hard"}
    policy = micro_policy()
    for label in ("hard", "soft"):
        save_whole(Policy(study.models[label], policy.tokenizer), tmp_path / "models/prm")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["prm"]
    source = ModelledSteps(kind="prm", path=str(tmp_path / "models/prm"))
    samples = worked_samples()
    assert make_step_scorer(source, policy, engine=study.engine)(samples) == study.scorers["prm_soft"](samples)


def test_the_page_holds_what_the_report_says(report):
    text = results(report)
    table = report["rerank"]
    for arm, row in table.items():
        cells = " | ".join(
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * row[n]["accuracy"][k] for k in ("value", "low", "high")))
            for n in ("1", "4", "8")
        )
        assert f"| {NAMES[arm]} | {cells} |" in text
    assert "Reading: at N = 8, against the majority vote, the best by the better PRM" in text
    assert "at equal generated tokens, search guided by the exact checker is" in text
    assert results({}) == NOTHING


def test_words_follow_from_intervals(report):
    def reading(low, high):
        changed = json.loads(json.dumps(report))
        value = -0.1 if high < 0 else 0.1
        changed["rerank"]["best_checker"]["8"]["over_majority"] = {"value": value, "low": low, "high": high}
        return results(changed)

    assert "the best by the exact checker 10.0 points above." in reading(0.05, 0.2)
    assert "the best by the exact checker 10.0 points below." in reading(-0.2, -0.05)
    assert "the best by the exact checker not told apart." in reading(-0.1, 0.2)


def test_the_committed_page_is_that_of_the_committed_report():
    path = ROOT / "reports/studies/process.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    assert block_of((ROOT / "docs/process_rewards.md").read_text(encoding="utf-8")) == results(report)
