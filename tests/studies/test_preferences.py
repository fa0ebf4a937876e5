"""The study of preference methods: an arm for every method, a toy arm of each way to train, and the page."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import ConfigError, load_params
from posttrain.config_align import Align
from posttrain.engine.policy import Policy, save_policy
from posttrain.engine.scalar_head import with_scalar_head
from posttrain.evals.inputs import Source
from posttrain.fingerprint import stage_definition
from posttrain.job import curve_path, report_path
from posttrain.loops.align_rl import rl_section
from posttrain.profiles import merge
from posttrain.records import DataError, write_jsonl
from studies.preferences import arm, page
from studies.preferences.measure import compare
from studies.preferences.plan import STUDY, Study, arm_section, load_study
from tests.loops.samples import made
from tests.loops.test_preference import pairs
from tests.loops.toy import PROBLEMS, start_policy

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = yaml.safe_load((ROOT / STUDY).read_text(encoding="utf-8"))
TINY = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))


def kinds() -> set[str]:
    union = Align.model_fields["method"].annotation
    return {kind for choice in union.__args__ for kind in choice.model_fields["kind"].annotation.__args__}


def test_every_method_has_an_arm_that_can_be_trained() -> None:
    params, study = load_params(ROOT / "params.yaml"), load_study(ROOT / STUDY)
    assert set(study.arms) == kinds()
    for name in study.arms:
        section = arm_section(name, params, study)
        assert (section.method.kind, section.rounds, section.epochs) == (name, 1, study.epochs)
        assert section.optimizer.model_copy(update={"lr": params.align.optimizer.lr}) == params.align.optimizer
    for name in ("ppo", "grpo_rm"):
        section = arm_section(name, params, study)
        rl_section(params.grpo, section.method, section.optimizer)
        # What the table measures, no arm may look at.
        assert section.method.stop.signal == "none"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 0}, r"params.yaml: samples: got 0; wanted: greater than or equal to 1"),
        ({"draws": 1}, r"draws: got 1; wanted: no such key"),
        ({"arms": {"dpo": NUMBERS["arms"]["simpo"]}}, r"arms.dpo.method.kind: got 'simpo', wanted 'dpo'"),
        ({"arms": {"dpo": NUMBERS["arms"]["dpo"] | {"lr": 0.0}}}, r"arms.dpo.lr: got 0.0; wanted: greater than 0"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(NUMBERS | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_study(path)


def test_an_arm_that_does_not_fit_is_named() -> None:
    params, study = load_params(ROOT / "params.yaml"), load_study(ROOT / STUDY)
    with pytest.raises(ConfigError, match=r"arms: got no 'dpo2', wanted one of dpo, "):
        arm_section("dpo2", params, study)
    with pytest.raises(ConfigError, match=r"arm kto: align: batch_pairs: got 1, wanted at least 2 with method 'kto'"):
        arm_section("kto", params, study.model_copy(update={"batch_pairs": 1}))


def test_the_pipeline_has_an_arm_each_and_lists_what_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pipeline = yaml.safe_load((ROOT / "studies/preferences/dvc.yaml").read_text(encoding="utf-8"))
    assert set(pipeline["stages"]["preferences"]["foreach"]) == set(NUMBERS["arms"])
    entry = stage_definition("studies/preferences@kto")
    assert entry["wdir"] == "../.." and entry["cmd"].endswith("studies.preferences.arm --method kto")
    read = {"models/fuse", "models/reward_model", "data/preferences", "data/curated/train.jsonl"}
    assert set(entry["deps"]) >= read | {"data/curated/heldout.jsonl"}
    assert [next(iter(item)) for item in entry["metrics"]] == [str(report_path("studies/preferences@kto"))]
    assert [next(iter(item)) for item in entry["plots"]] == [str(curve_path("studies/preferences@kto"))]
    (own,) = (item for item in entry["params"] if isinstance(item, dict))
    keys = own[str(STUDY)]
    assert "arms.kto" in keys and {key.partition(".")[0] for key in keys} == set(Study.model_fields)
    # Sections that arm.py and plan.py read, and seed and engine.
    assert set(entry["params"][:-1]) == {"seed", "engine", "grpo", "align", "probe"}


def test_a_comparison_by_hand() -> None:
    """Right answers 1 and 1/2 of two questions against 1/2 and 0; 10 tokens against 12 and 20."""
    ours = [[made(10), made(10)], [made(10), made(10, status="wrong")]]
    theirs = [[made(12), made(12, status="wrong")], [made(20, status="wrong"), made(20, status="wrong")]]
    found = compare(ours, theirs, draws=100, seed=1)
    assert (found["end"]["accuracy"]["value"], found["fuse"]["accuracy"]["value"]) == (0.75, 0.25)
    assert found["difference"]["accuracy"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["difference"]["tokens"]["value"] == -6.0
    assert (found["difference"]["tokens"]["low"], found["difference"]["tokens"]["high"]) == (-10.0, -2.0)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy world, with a study of its size."""
    study = copy.deepcopy(NUMBERS) | {"batch_pairs": 2, "problems": 3, "samples": 4, "bootstrap": 50}
    for values in (one["method"] for one in study["arms"].values() if "steps" in one["method"]):
        values |= {"steps": 4, "epochs": 1, "look_every": 4, "look_problems": 2}
    toy = {
        "grpo": {"prompts_per_step": 4, "group_size": 4, "generation": {"max_new_tokens": 24}},
        "probe": {"generation": {"max_new_tokens": 24}},
    }
    policy = start_policy()
    monkeypatch.chdir(tmp_path)
    for name in ("studies/preferences/dvc.yaml", "dvc.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, name)
    Path(STUDY).write_text(yaml.safe_dump(study), encoding="utf-8")
    Path("params.yaml").write_text(yaml.safe_dump(merge(TINY, toy)), encoding="utf-8")
    save_policy(policy, Path("models/fuse"))
    save_policy(Policy(with_scalar_head(policy.model, seed=1), policy.tokenizer), Path("models/reward_model"))
    write_jsonl(Path("data/preferences/pairs.jsonl"), pairs())
    for split in ("train", "heldout"):
        write_jsonl(Path(f"data/curated/{split}.jsonl"), PROBLEMS)
    return tmp_path


def test_an_arm_of_each_way_to_train(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both reports make a page; what does not change, the start, is the same in both."""
    for name in ("orpo", "grpo_rm"):
        monkeypatch.setattr("sys.argv", ["arm", "--method", name])
        arm.main()
    arms = page.read_arms(page.REPORTS)
    assert set(arms) == {"orpo", "grpo_rm"} and arms["orpo"].need("fuse") == arms["grpo_rm"].need("fuse")
    for one in arms.values():
        assert one.need("questions") == 3 and one.need("samples") == 4
        assert one.need("kl") > 0 and one.need("seconds") > 0
        assert one.need("win_rate.low") <= one.need("win_rate.value") <= one.need("win_rate.high")
    assert arms["orpo"].need("trained.steps") > 0 and arms["grpo_rm"].need("trained.kept_step") == 4
    assert page.main() == 0
    assert "| grpo_rm | 1.5e-04 |" in page.PAGE.read_text(encoding="utf-8")


def report(name: str, win: float, **changes: Any) -> dict[str, Any]:
    """Made-up numbers; shares have 2 points to each side, tokens 1."""

    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    def side(value: float, tokens: float) -> dict[str, Any]:
        return {"accuracy": share(value), "tokens": {"value": tokens, "low": tokens - 1, "high": tokens + 1}}

    return {
        "method": name,
        "learning_rate": 0.00006,
        "questions": 600,
        "samples": 4,
        "win_rate": share(win) | {"by_correct": 0.25, "by_script": 0.01, "by_length": 0.7, "ties": 0.04},
        "fuse": side(0.67, 42.0),
        "end": side(0.68, 39.0),
        "difference": {"accuracy": share(0.01)},
        "kl": 0.734,
        "seconds": 12.4,
        "machine": {"cores": 2, "torch": "9.9.9"},
    } | changes


def sources(*reports: dict[str, Any]) -> dict[str, Source]:
    return {r["method"]: Source(f"reports/{r['method']}.json", r) for r in reports}


def test_every_number_in_its_column_the_best_first() -> None:
    text = page.build(sources(report("dpo", 0.55), report("ppo", 0.61)), ["dpo", "ppo", "kto"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(page.HEADER)} and [row[0] for row in rows[3:]] == ["ppo", "dpo"]
    assert rows[2] == ["fuse", "-", "50.0", "-", "67.0 [65.0, 69.0]", "-", "42.0 [41.0, 43.0]", "0.00"]
    assert rows[4] == [
        *("dpo", "6.0e-05", "55.0 [53.0, 57.0]", "25 / 1 / 70", "68.0 [66.0, 70.0]", "+1.0 [-1.0, +3.0]"),
        *("39.0 [38.0, 40.0]", "0.73"),
    ]
    assert "Not run yet: kto." in text and "600 held-out questions, 4 answers each" in text
    assert "Measured on 2 cores, torch 9.9.9." in text and page.COMMAND in text


def test_arms_of_another_start_share_no_table_and_strangers_are_named() -> None:
    other = report("ppo", 0.5, fuse={"accuracy": {"value": 0.1}})
    with pytest.raises(DataError, match=r"reports/ppo\.json: key 'fuse': got .*, wanted .* as in reports/dpo\.json"):
        page.build(sources(report("dpo", 0.5), other), ["dpo", "ppo"])
    with pytest.raises(DataError, match=r"reports/studies/preferences: got 'gone', wanted one of dpo"):
        page.build(sources(report("gone", 0.5)), ["dpo"])
    broken = report("dpo", 0.5)
    del broken["kl"]
    with pytest.raises(DataError, match=r"reports/dpo\.json: key 'kl'"):
        page.build(sources(broken), ["dpo"])


def test_the_page_in_git_is_that_of_the_reports_in_git() -> None:
    """Run `python -m studies.preferences.page` when this fails."""
    folder = ROOT / page.REPORTS
    arms = {name: Source(f"{page.REPORTS}/{name}.json", one.values) for name, one in page.read_arms(folder).items()}
    assert (ROOT / page.PAGE).read_text(encoding="utf-8") == page.build(arms, list(load_study(ROOT / STUDY).arms))
