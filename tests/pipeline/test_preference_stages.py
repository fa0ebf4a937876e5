"""Stages prefer, reward_model and align as they are run, in a toy world whose model answers 7 or 8."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from posttrain.engine.policy import save_policy
from posttrain.engine.scalar_head import load_reward_model
from posttrain.fingerprint import fingerprint, stage_definition
from posttrain.profiles import merge
from posttrain.records import Pair, read_jsonl, write_jsonl
from tasks import align, prefer, reward_model
from tests.loops.test_pair_file import row
from tests.loops.toy import PROBLEMS, objective, start_policy

ROOT = Path(__file__).resolve().parents[2]
TINY = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
TOY = {
    "prefer": {"problems": 4, "samples": 8, "generation": {"max_new_tokens": 24}, "heldout_share": 0.5},
    "reward_model": {"batch_pairs": 2, "optimizer": {"lr": 0.003}},
    "align": {"rounds": 1, "batch_pairs": 4, "win_problems": 4},
    "grpo": {"prompts_per_step": 4, "group_size": 4, "generation": {"max_new_tokens": 24}},
    "probe": {"samples": 4, "generation": {"max_new_tokens": 24}},
}
OBJECTIVES = {"ppo": objective("ppo")["objective"], "grpo_rm": objective("dr_grpo")["objective"]}
PAIRS, REPORT = Path("data/preferences/pairs.jsonl"), Path("reports/prefer.json")


def use(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(merge(merge(TINY, TOY), changes)), encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world after both stages."""
    folder = tmp_path_factory.mktemp("world")
    save_policy(start_policy(), folder / "models/fuse")
    save_policy(start_policy(), folder / "models/sft")
    for split in ("train", "heldout"):
        write_jsonl(folder / f"data/curated/{split}.jsonl", PROBLEMS)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "system.yaml").write_text("processes: 1\n", encoding="utf-8")  # stages run inside the tests' process
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use()
        prefer.main()
        reward_model.main()
    return folder


@pytest.fixture
def project(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(world, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_the_stages_leave_what_they_promise(project: Path) -> None:
    pairs = read_jsonl(PAIRS, Pair)
    report = json.loads(REPORT.read_text())
    assert report["pairs"] == len(pairs) > 4 and report["problems"] == 4
    assert all(pair.judge == "rule" and pair.chosen_ids and pair.rejected_ids for pair in pairs)
    quality = json.loads(Path("reports/reward_model.json").read_text())
    held_out = quality["heldout"]
    assert quality["heldout_pairs"] == report["heldout_pairs"] > 0
    assert set(held_out) == {
        "accuracy", "accuracy_interval", "accuracy_to_judge", "ties", "mean_margin", "log_loss", "ece",
        "accuracy_by_length", "pairs_by_length", "accuracy_by_margin", "pairs_by_margin",
    }  # fmt: skip
    assert held_out["accuracy_interval"]["low"] <= held_out["accuracy"] <= held_out["accuracy_interval"]["high"]
    load_reward_model(Path("models/reward_model"), start_policy().tokenizer, precision="fp32")


def test_the_same_params_give_the_same_pairs(project: Path) -> None:
    before = PAIRS.read_bytes()
    prefer.main()
    assert PAIRS.read_bytes() == before
    use(prefer={"noise": {"kind": "flip", "rate": 0.4}})
    prefer.main()
    assert PAIRS.read_bytes() != before


def test_more_than_one_epoch_is_warned_of(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(reward_model={"epochs": 2})
    reward_model.main()
    assert "warning: 2 epochs; a reward model overfits its pairs" in capsys.readouterr().out
    use(reward_model={"epochs": 1})
    reward_model.main()
    assert "warning" not in capsys.readouterr().out


def test_a_reward_model_judges_another_models_answers(project: Path) -> None:
    Path("models/reward_model").rename("models/judge")
    judge = {"kind": "reward_model", "path": "models/judge"}
    use(prefer={"judge": judge, "model": "sft", "noise": {"kind": "bradley_terry", "temperature": 1.0e-6}})
    shutil.rmtree("models/fuse")
    prefer.main()
    assert {pair.judge for pair in read_jsonl(PAIRS, Pair)} == {"reward_model"}
    assert json.loads(REPORT.read_text())["agreement"] > 0.9


def test_a_file_is_taken_as_it_is(project: Path) -> None:
    rows = [row(i, margin=i, split="heldout" if i == 3 else "train") for i in range(4)]
    Path("mine.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    use(prefer={"judge": {"kind": "file", "path": "mine.jsonl"}, "noise": {"rate": 0.0}})
    prefer.main()
    pairs = read_jsonl(PAIRS, Pair)
    assert [(p.prompt, p.margin, p.split) for p in pairs] == [(r["prompt"], r["margin"], r["split"]) for r in rows]
    report = json.loads(REPORT.read_text())
    assert (report["problems"], report["pairs"], report["agreement"]) == (4, 4, 1.0)
    reward_model.main()


def test_bad_pairs_train_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    rows[1] |= {"split": "heldout" if rows[0]["split"] == "train" else "train", "prompt": rows[0]["prompt"]}
    PAIRS.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    before = Path("models/reward_model/model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        reward_model.main()
    assert stopped.value.code == 2
    assert "data/preferences/pairs.jsonl:2: problem '" in capsys.readouterr().err
    assert Path("models/reward_model/model.safetensors").read_bytes() == before


def test_the_model_that_answers_is_a_dependency(project: Path) -> None:
    """As DVC reads dvc.yaml: the fingerprint of checkpoints sees the same files."""
    assert "models/fuse" in stage_definition("prefer")["deps"]
    before = fingerprint("prefer")
    use(prefer={"model": "grpo"})
    assert (
        "models/grpo" in stage_definition("prefer")["deps"] and "models/fuse" not in stage_definition("prefer")["deps"]
    )
    assert fingerprint("prefer") != before
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    (stage,) = Repo().stage.collect("prefer")
    files = [dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    assert sorted(files) == sorted(stage_definition("prefer")["deps"])


def learned_rl(kind: str, **changes: object) -> dict[str, object]:
    return {
        "kind": kind,
        "objective": OBJECTIVES[kind],
        "steps": 4,
        "epochs": 1,
        "minibatches": 1,
        "rewards": {"learned": {"weight": 1.0, "start": 0, "ramp": 0}},
        "look_every": 2,
        "look_problems": 2,
        "look_samples": 4,
        "stop": {"signal": "none", "checks": 1},
        "second_reward_model": None,
    } | changes


def test_pairs_train_the_policy_without_a_reward_model(project: Path) -> None:
    shutil.rmtree("models/reward_model")
    align.main()
    report = json.loads(Path("reports/align.json").read_text())
    assert set(report) == {"method", "win_rate", "kl_sequence", "samples", "rounds"} and report["method"] == "dpo"
    assert len(report["rounds"]) == 1 and report["rounds"][0]["steps"] > 0


@pytest.mark.parametrize("kind", ["ppo", "grpo_rm"])
def test_rl_on_the_reward_model_trains_the_policy(project: Path, kind: str) -> None:
    """Without any pairs; a second reward model is measured beside the one that is optimised."""
    shutil.rmtree("data/preferences")
    shutil.copytree("models/reward_model", "models/other")
    stop = {"signal": "second_proxy", "checks": 3}
    use(align={"method": learned_rl(kind, second_reward_model="models/other", stop=stop)})
    align.main()
    report = json.loads(Path("reports/align.json").read_text())
    assert set(report) == {"method", "win_rate", "kl_sequence", "samples", "rl"} and report["method"] == kind
    looks = report["rl"]["heldout"]
    assert list(looks) == ["0", "2", "4"] and report["rl"]["steps"] == 4
    assert all(look["proxy"] == look["second_proxy"] for look in looks.values())
    kept = report["rl"]["kept_step"]
    assert looks[str(kept)]["proxy"] == max(look["proxy"] for look in looks.values())
    changed = Path("models/align/model.safetensors").read_bytes() != Path("models/fuse/model.safetensors").read_bytes()
    assert changed == (kept > 0) == (report["kl_sequence"] != 0.0)
    header = Path("reports/curves/align.csv").read_text().splitlines()[0].split(",")
    assert {"step", "train/loss", "reward/learned", "eval/gold"} <= set(header)


def test_a_missing_reward_model_trains_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(align={"method": learned_rl("grpo_rm", second_reward_model="models/none")})
    with pytest.raises(SystemExit) as stopped:
        align.main()
    assert stopped.value.code == 2 and "models/none: cannot be loaded as a reward model" in capsys.readouterr().err
    assert not Path("models/align").exists() and not list(Path(".work/ckpt/align").rglob("*.pt"))
