"""The study of calibration: strict numbers, forecasts by hand, the toy chain from end to end, a page that says it."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from posttrain.chat.template import decode_ids
from posttrain.config import ConfigError
from posttrain.engine.policy import save_policy
from posttrain.engine.rollout import Request
from posttrain.evals.calibration import Forecast
from posttrain.evals.confidence_sources import true_prompt, true_replies
from posttrain.evals.forms import ChatForm
from posttrain.evals.readme import block_of
from posttrain.records import write_jsonl
from studies.calibration import __main__ as study
from studies.calibration.ask import Answer, Asker, Opinion, forecasts
from studies.calibration.figure import along_the_chain, diagrams, measured
from studies.calibration.page import NOTHING, PAGE, REPORT, block
from studies.calibration.settings import load_settings
from studies.calibration.study import counts, floor_of
from tests.loops.toy import GENERATION, PROBLEMS, sampler_of, start_policy

ROOT = Path(__file__).parents[2]
NUMBERS = {
    "models": ["base", "sft", "grpo"],
    "questions": 4,
    "samples": 8,
    "deployed": 0.5,
    "bins": 5,
    "bootstrap": 50,
    "reply_tokens": 4,
}


def settings(folder, **changes):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(NUMBERS | changes), encoding="utf-8")
    return load_settings(path)


def toy_policy():
    policy = start_policy()
    policy.model.config.max_position_embeddings = 512  # room for what is asked about an answer
    return policy


def said(text, *, correct, token=0.5, p_true=0.5, stated=None):
    return Answer(text, token, Opinion(correct, p_true, 0.25, stated))


def test_the_committed_numbers_are_valid():
    assert load_settings(study.SETTINGS).temperatures == (1.0, 0.6)


def test_wrong_numbers_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"settings.yaml: samples: got 1; wanted: greater than or equal to 2"):
        settings(tmp_path, samples=1)
    with pytest.raises(ConfigError, match=r"deployed: got 0; wanted: greater than 0"):
        settings(tmp_path, deployed=0)
    with pytest.raises(ConfigError, match=r"sampels: got 8; wanted: no such key"):
        settings(tmp_path, sampels=8)
    assert settings(tmp_path, deployed=1.0).temperatures == (1.0,)


def test_forecasts_by_hand():
    """Question 0: two right, one wrong, one without an answer; question 1: one that could not be verified."""
    seven, eight = said("7", correct=True, token=0.9, p_true=0.6), said("8", correct=False, token=0.4, stated=0.2)
    rows = [[seven, eight, seven, None], [said("7", correct=None), said("7", correct=None)] * 2]
    found = forecasts(rows, question_ids=["a", "b"], seed=0)
    assert found["token"] == [Forecast(0, 0.9, True), Forecast(0, 0.4, False), Forecast(0, 0.9, True),
                              Forecast(0, 0.0, False)]  # fmt: skip
    assert [f.confidence for f in found["p_true"]] == [0.6, 0.5, 0.6, 0.0]
    # One of three answers states a number; no answer is confidence 0 here too.
    assert found["verbalised"] == [Forecast(0, 0.2, False), Forecast(0, 0.0, False)]
    # 7 and 8 tie in the first half; the second elects 7, which the first has once of two.
    assert found["consistency"][1] == Forecast(0, 0.5, True)
    assert {f.question for f in found["consistency"]} == {0}
    assert counts(rows) == {"no_answer": 1 / 8, "unverified": 0.5, "asked": 7, "stated": 1, "true_or_false": 0.25}


def test_nothing_stated_is_absent_not_zero():
    rows = [[said("7", correct=True), None]]
    assert forecasts(rows, question_ids=["a"], seed=0)["verbalised"] == []
    assert counts([[None, None]])["true_or_false"] is None


def test_order_of_samples_changes_no_forecast():
    rows = [[said("7", correct=True, token=0.1 * k) for k in range(8)]]
    first, second = (forecasts(r, question_ids=["a"], seed=0) for r in (rows, [rows[0][::-1]]))
    for source in ("token", "p_true", "consistency"):
        assert sorted(first[source], key=str) == sorted(second[source], key=str)


def test_floors():
    """Four votes tell quarters: half of one is .125."""
    assert floor_of("consistency", samples=8) == 0.125
    assert floor_of("token", samples=8) == floor_of("p_true", samples=8) == 1e-6


def test_confidences_of_a_real_model(tmp_path):
    """Token probability is the sampler's own at T = 1; P(True) is that of a plain forward pass."""
    policy = toy_policy()
    engine, tokenizer = sampler_of(policy), policy.tokenizer
    asker = Asker(policy, engine, settings(tmp_path), False, GENERATION.max_new_tokens, 4096, 7)
    answers = asker.answers(PROBLEMS)
    assert list(answers) == [1.0, 0.5]
    form = ChatForm(tokenizer)
    requests = [Request(p.id, form.prompt(p, "think")) for p in PROBLEMS]
    rollouts = engine.generate(requests, samples=8, generation=GENERATION, seed=7, stop_ids=form.stop_ids)
    compared = 0
    for rollout, answer in zip(rollouts, [a for row in answers[1.0] for a in row], strict=True):
        if answer is None:
            continue
        held = [decode_ids(tokenizer, [token]) for token in rollout.response_ids]
        places = [i for i, piece in enumerate(held) if answer.text in piece]
        if not places:  # an answer of several tokens
            continue
        assert answer.token == pytest.approx(math.exp(rollout.logprobs[places[-1]]), rel=1e-3)
        compared += 1
    assert compared > 20
    opinion = next(a.opinion for a in answers[1.0][0] if a and a.text == "7")
    prompt = true_prompt(tokenizer, PROBLEMS[0].prompt, "7", chat=True)
    sums = []
    for reply in true_replies(tokenizer, chat=True):
        with torch.no_grad():
            rows = policy.model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        sums.append(float(sum(rows[len(prompt) - 1 + i, token] for i, token in enumerate(reply))))
    assert opinion.p_true == pytest.approx(1 / (1 + math.exp(sums[1] - sums[0])), rel=1e-3)
    assert opinion.correct is True and opinion.stated is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of the study over a toy chain: a base that does not know the plain form, then twice the same chat model."""
    here = tmp_path_factory.mktemp("calibration")
    for name in NUMBERS["models"]:
        save_policy(toy_policy(), here / "models" / name)
    write_jsonl(here / "data/curated/heldout.jsonl", PROBLEMS)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["generation"]["max_new_tokens"] = 24
    (here / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (here / "settings.yaml").write_text(yaml.safe_dump(NUMBERS), encoding="utf-8")
    (here / "docs").mkdir()
    shutil.copy(ROOT / PAGE, here / PAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "argv", ["studies.calibration", "settings.yaml"])
        study.main()
    return here


def test_the_study_from_end_to_end(folder):
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert list(report["models"]) == ["base", "grpo", "sft"] and report["temperatures"] == [1.0, 0.5]
    base, sft, grpo = (report["models"][name] for name in NUMBERS["models"])
    for at in ("1", "0.5"):
        assert base[at]["no_answer"] > 0.5
        assert base[at]["token"]["against_previous"] is None
        for source in ("token", "consistency", "p_true"):
            # The same model, the same draws: no change whatever.
            gap = {"model": "sft", "value": 0.0, "low": 0.0, "high": 0.0}
            assert grpo[at][source] == sft[at][source] | {"against_previous": gap}
        assert sft[at]["verbalised"] is None and sft[at]["stated"] == 0 < sft[at]["asked"]
    # It says 7 or 8, each about half of the time, and knows it.
    token = sft["1"]["token"]
    assert token["forecasts"] == 32 and token["confidence"]["value"] == pytest.approx(0.5, abs=0.15)
    assert abs(token["overconfidence"]["value"]) < 0.25
    assert 0.01 <= token["repair"]["temperature"] <= 100.0
    for name in ("reliability", "along-the-chain"):
        assert "<svg" in (folder / f"reports/figures/studies-calibration-{name}.svg").read_text(encoding="utf-8")


def test_the_page_holds_what_the_report_says(folder):
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    text = block_of((folder / PAGE).read_text(encoding="utf-8"))
    assert text == block(report)
    assert "Calibration after RL (sft to grpo) at T = 1: by token probability it did not change measurably (" in text
    assert "Calibration after RL (sft to grpo) at T = 0.5: by token probability it did not" in text
    assert "Calibration after RLHF" not in text  # no such model here
    assert "change +0.000 [+0.000, +0.000]" in text
    asked = sum(values["asked"] for model in report["models"].values() for values in model.values())
    assert f"**verbalised**: a number is stated for 0 of {asked} answers: absent." in text
    ece = report["models"]["sft"]["1"]["token"]["ece"]
    assert f"{ece['value']:.3f} [{ece['low']:.3f}, {ece['high']:.3f}]" in text
    assert "4 held-out questions, 8 samples each" in text


def test_words_follow_from_intervals(folder):
    def verdict(low, high):
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        gap = {"model": "sft", "value": (low + high) / 2, "low": low, "high": high}
        report["models"]["grpo"]["1"]["token"]["against_previous"] = gap
        return block(report).split(";")[0]

    assert "at T = 1: by token probability it got worse (ECE" in verdict(0.01, 0.03)
    assert "it got better" in verdict(-0.03, -0.01) and "change -0.020 [-0.030, -0.010]" in verdict(-0.03, -0.01)
    assert "it did not change measurably" in verdict(-0.03, 0.01)


def test_figures_show_what_was_measured(folder):
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert measured(report) == ["token", "consistency", "p_true"]
    panels = diagrams(report).axes
    assert [axes.get_title(loc="left") for axes in panels] == [*NUMBERS["models"], *[""] * 6]
    assert [axes.get_ylabel() for axes in panels[::3]] == ["token probability", "consistency", "P(True)"]
    assert len(along_the_chain(report).axes) == 3
    report["models"]["grpo"]["1"]["verbalised"] = report["models"]["grpo"]["1"]["token"]
    assert len(diagrams(report).axes) == 4 * 3


def test_the_committed_page_is_that_of_the_committed_report():
    report = json.loads((ROOT / REPORT).read_text(encoding="utf-8")) if (ROOT / REPORT).is_file() else None
    assert block_of((ROOT / PAGE).read_text(encoding="utf-8")) == block(report)
    assert block(None) == NOTHING
