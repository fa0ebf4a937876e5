"""The study of overoptimization: strict numbers, arms that differ in their reward alone, a toy run, and its page."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import yaml

from posttrain.config import ConfigError, load_params
from posttrain.engine.policy import save_policy
from posttrain.errors import StageError
from posttrain.evals.overoptimization import best_of_n_kl
from posttrain.evals.readme import block_of
from posttrain.files import rounded
from posttrain.fingerprint import stage_definition
from posttrain.job import curve_path, report_path
from posttrain.system import System
from studies.overoptimization.figure import PANELS, picture
from studies.overoptimization.page import NOTHING, PAGE, PICTURE, REPORT, block
from studies.overoptimization.plan import ARMS, STUDY, Study, arm_section, load_study, proxy_section
from studies.overoptimization.study import SEEN, Bench, describe, run, spread
from tests.loops.toy import ENGINE, GENERATION, PROBLEMS, optimizer, start_policy

PARAMS = load_params()
TRAIN, HELDOUT = ([dataclasses.replace(p, id=f"{name}{i}-{p.id}") for i in range(4) for p in PROBLEMS] for name in "th")


def test_the_committed_numbers_are_valid():
    assert load_study().best_of_n.at[-1] == load_study().best_of_n.samples


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("labels", "flip_rate", 0.5, "labels.flip_rate: got 0.5; wanted: less than 0.5"),
        ("labels", "flips", 0.1, "labels.flips: got 0.1; wanted: no such key"),
        ("best_of_n", "at", [2, 4], r"best_of_n: at: got \[2, 4\], wanted n that rise from 1 to at most samples = 256"),
        ("best_of_n", "samples", 8, r"best_of_n: at: got \[1, .*, 256\], wanted .* samples = 8"),
        ("rl", "kl", 0.0, "rl.kl: got 0.0; wanted: greater than 0"),
    ],
)
def test_wrong_numbers_are_named(tmp_path, part, key, value, said):
    values = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    values[part][key] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_study(path)


def test_arms_differ_in_their_reward_and_its_penalty():
    numbers = load_study().rl
    proxy, penalised = (
        arm_section(arm, PARAMS.grpo, numbers, reward="learned", unit=0.5) for arm in ("proxy", "proxy_kl")
    )
    gold = arm_section("gold", PARAMS.grpo, numbers, reward="gold", unit=4.0)
    assert (
        proxy.rewards["learned"].weight == 2.0 and set(gold.rewards) == {"gold"} and set(proxy.rewards) == {"learned"}
    )
    assert proxy.objective.kl.kind == "none" and penalised.objective.kl.coefficient == numbers.kl
    assert penalised.model_copy(update={"objective": proxy.objective}) == proxy
    assert gold.model_copy(update={"rewards": proxy.rewards}) == proxy
    assert proxy.objective.model_copy(update={"kl": PARAMS.grpo.objective.kl}) == PARAMS.grpo.objective
    assert proxy_section(PARAMS.reward_model, load_study().proxies).batch_pairs == PARAMS.reward_model.batch_pairs


def test_units_are_of_one_prompt():
    """The prompts' own levels, 0 and 100, say nothing: within each the variance is 2."""
    assert spread("s", np.array([[1.0, -1.0], [101.0, 99.0]])) == pytest.approx(2**0.5)
    with pytest.raises(StageError, match="second_proxy: gives all samples of a prompt the same score"):
        spread("second_proxy", np.array([[1.0, 1.0], [3.0, 3.0]]))


def bench(folder):
    """The study in the toy world, where half of the answers are right."""
    study = load_study()
    changed = {
        "labels": study.labels.model_copy(update={"problems": 16, "samples": 8, "heldout_share": 0.3}),
        "proxies": study.proxies.model_copy(update={"epochs": 16.0, "lr": 0.003}),
        "best_of_n": study.best_of_n.model_copy(update={"problems": 6, "samples": 16, "at": (1, 2, 4, 16)}),
        "rl": study.rl.model_copy(
            update={
                "steps": 3, "prompts_per_step": 4, "lr": 0.003, "look_every": 2, "look_problems": 5, "look_samples": 4
            }
        ),
        "bootstrap": 50,
    }  # fmt: skip
    grpo = PARAMS.grpo.model_copy(update={"generation": GENERATION})
    prefer = PARAMS.prefer.model_copy(update={"generation": GENERATION})
    reward_model = PARAMS.reward_model.model_copy(update={"optimizer": optimizer(), "batch_pairs": 8})
    logged, notes = [], []
    made = Bench(
        params=PARAMS.model_copy(
            update={"grpo": grpo, "prefer": prefer, "reward_model": reward_model, "engine": ENGINE}
        ),
        study=study.model_copy(update=changed),
        machine=System(),
        seed=3,
        train=TRAIN,
        heldout=HELDOUT,
        checkpoints=folder / "checkpoints",
        log=lambda metrics, step: logged.append((step, metrics)),
        note=notes.append,
    )
    return made, logged, notes


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_policy(start_policy(), folder / "models/fuse")
    made, logged, notes = bench(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report = json.loads(json.dumps(rounded(run(made))))
    return report, logged, notes


def test_the_report_of_a_toy(ran):
    report, _, _ = ran
    chosen, trained = (report[way]["curves"] for way in ("best_of_n", "rl"))
    assert set(chosen) == {"proxy", "gold"} and tuple(trained) == ARMS
    assert [point["n"] for point in chosen["proxy"]["points"]] == [1, 2, 4, 16]
    assert [point["kl"] for point in chosen["gold"]["points"]] == pytest.approx(
        [best_of_n_kl(n) for n in (1, 2, 4, 16)], abs=1e-5
    )
    for arm in ARMS:
        points = trained[arm]["points"]
        assert [point["step"] for point in points] == [0, 2, 3] and trained[arm]["questions"] == 5
        assert points[0]["kl"] == 0.0 and points[-1]["kl"] > 0.0
        for gain in points[0]["gain"].values():
            assert gain == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert set(points[0]["gain"]) == {"gold", "proxy", "second_proxy", SEEN}
    # All arms start from the same model, whose answers are the same.
    assert len({json.dumps(trained[arm]["points"][0]) for arm in ARMS}) == 1
    for curve in chosen.values():
        gains = [point["gain"] for point in curve["points"]]
        assert "second_proxy" in gains[0] and gains[0]["gold"]["value"] == 0.0
    # Of 16 answers, half right, one is right, and gold finds it.
    assert chosen["gold"]["points"][-1]["gain"]["gold"]["low"] > 0.5
    assert report["labels"]["proxy"]["problems"] == report["labels"]["second_proxy"]["problems"] == 8
    assert {0.5 < value["quality"]["train"]["accuracy"] <= 1.0 for value in report["labels"].values()} == {True}


def test_everything_is_logged_below_its_name(ran):
    _, logged, notes = ran
    names = {name for _, metrics in logged for name in metrics}
    for part in ("proxy/train/loss", "second_proxy/train/loss", "rl-proxy/eval/gold", "rl-gold/reward/gold"):
        assert part in names
    assert {"rl-proxy_kl/kl/coefficient", "rl-proxy/reward/learned", "rl-gold/eval/second_proxy"} <= names
    assert not any("time/" in name or "perf/" in name for name in names)
    assert any(note.startswith("RL, gold: Gold ") for note in notes)


def test_a_curve_by_hand(tmp_path):
    """Gold up by 1, then down by 2, on every question; prompts seen in training are others, and fewer."""
    made, _, _ = bench(tmp_path)
    kl = np.tile([0.0, 1.0, 4.0], (3, 1))
    scores = {"gold": np.tile([5.0, 6.0, 4.0], (3, 1)), SEEN: np.array([[1.0, 2.0, 2.5], [3.0, 4.0, 4.5]])}
    curve = describe(made, "rl", kl, scores, places=[{"step": n} for n in (0, 1, 2)])
    assert [point["gain"]["gold"]["value"] for point in curve["points"]] == [0.0, 1.0, -1.0]
    assert [point["gain"][SEEN]["value"] for point in curve["points"]] == [0.0, 1.0, 1.5]
    assert curve["turn"]["index"] == 1 and curve["turn"]["fall"]["value"] == -2.0
    assert curve["fit"] is None  # two points
    assert "peaked at KL 1.00 nats (sqrt 1.00), +1.00 sd from the start: stop there." in curve["sentence"]


def test_the_page_holds_what_the_report_says(ran):
    report, _, _ = ran
    text = block(report)
    for way, arm, title in PANELS:
        curve = report[way]["curves"][arm]
        assert f"* **{title}.** {curve['sentence']}" in text
        gold = curve["points"][-1]["gain"]["gold"]
        cell = "{:.2f} [{:.2f}, {:.2f}]".format(*(gold[key] for key in ("value", "low", "high")))
        assert f"| {title} | {curve['points'][-1]['kl'] ** 0.5:.2f} |" in text and cell in text
    assert "25 % were flipped" in text and "5 held-out questions, 4 samples each" in text
    changed = copy.deepcopy(report)
    law = {"value": 1.0, "low": 0.9, "high": 1.1}
    changed["rl"]["curves"]["proxy"]["fit"] = {
        **dict.fromkeys(("alpha", "beta", "peak_gain"), law),
        "points": 3,
        "peak_kl": {"value": 900.0, "low": 800.0, "high": 999.0},
    }
    assert (
        "| RL on the proxy | 1.00 [0.90, 1.10] | 1.00 [0.90, 1.10] | 900.00 [800.00, 999.00] (not reached) |"
        in block(changed)
    )
    assert block(None) == NOTHING


def test_the_picture_is_the_same_each_time(ran):
    report, _, _ = ran
    first = picture(report)
    assert first == picture(copy.deepcopy(report))
    assert first.startswith("<svg") and "prefers-color-scheme:dark" in first
    for _, _, title in PANELS:
        assert title in first


def test_the_committed_page_is_that_of_the_committed_report():
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.is_file() else None
    assert block_of(PAGE.read_text(encoding="utf-8")) == block(report)
    assert PICTURE.is_file() == (report is not None)
    if report is not None:
        assert PICTURE.read_text(encoding="utf-8") == picture(report)


def test_its_stage_lists_what_it_reads_and_writes():
    entry = stage_definition("studies/overoptimization")
    assert entry["wdir"] == "../.." and entry["cmd"].endswith("studies.overoptimization.__main__")
    assert {"models/fuse", "data/curated/train.jsonl", "data/curated/heldout.jsonl"} <= set(entry["deps"])
    assert [next(iter(item)) for item in entry["metrics"]] == [str(report_path("studies/overoptimization"))]
    assert [next(iter(item)) for item in entry["plots"]] == [str(curve_path("studies/overoptimization"))]
    (own,) = (item for item in entry["params"] if isinstance(item, dict))
    assert own == {str(STUDY): list(Study.model_fields)}
    assert [item for item in entry["params"] if isinstance(item, str)] == [
        "seed", "engine", "grpo", "prefer", "reward_model"
    ]  # fmt: skip
