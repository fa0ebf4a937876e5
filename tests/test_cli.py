from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from posttrain import cli
from posttrain.mlflow_sink import open_store
from posttrain.progress import model_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("profiles", "objectives"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_use_writes_the_parameters(project: Path) -> None:
    assert CliRunner().invoke(cli.app, ["use", "tiny"]).exit_code == 0
    assert Path("params.yaml").read_text(encoding="utf-8").startswith("# Written by `posttrain use tiny`.")
    CliRunner().invoke(cli.app, ["use", "smoke", "--objective", "dapo"])
    assert "profile: smoke" in Path("params.yaml").read_text(encoding="utf-8")


def test_an_unknown_profile_is_bad_input(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["posttrain", "use", "tny"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "profiles/tny.yaml: no such file; profiles: " in capsys.readouterr().err
    assert not Path("params.yaml").exists()


def test_why_speaks_in_sentences() -> None:
    status = [
        {"changed deps": {"models/base": "modified", "params.yaml": {"sft.examples": "modified", "seed": "new"}}},
        {"changed outs": {"models/sft": "deleted"}},
        "changed command",
    ]
    assert cli.explain_status(status) == [
        "reads models/base: modified",
        "parameter sft.examples: modified",
        "parameter seed: new",
        "wrote models/sft: deleted",
        "changed command",
    ]


def test_compare_shows_both_executions(project: Path) -> None:
    CliRunner().invoke(cli.app, ["use", "tiny"])
    client, experiment = open_store(f"sqlite:///{project}/mlflow.db", "posttrain/tiny")
    assert "0 executions recorded, wanted two" in str(CliRunner().invoke(cli.app, ["compare"]).exception)
    for time, accuracy, cached in ((1000, 0.25, "false"), (2000, 0.5, "true")):
        parent = client.create_run(experiment, start_time=time, tags={"kind": "chain"}, run_name=f"chain-{time}")
        tags = {"mlflow.parentRunId": parent.info.run_id, "stage": "evaluate@sft", "dvc.cached": cached}
        child = client.create_run(experiment, start_time=time + 1, tags=tags)
        client.log_metric(child.info.run_id, "eval/think/avg/value", accuracy)
    shown = CliRunner().invoke(cli.app, ["compare"], env={"COLUMNS": "200"}).stdout
    assert "chain-1000 -> chain-2000" in shown
    assert "0.25 -> 0.5*" in shown


def test_the_table_of_models(tmp_path: Path) -> None:
    mode = {"avg": {"value": 0.5, "low": 0.45, "high": 0.555}, "tokens_mean": 61.4, "language_mixing": 0.02}
    report = {"model": "sft", "parameters": 918656, "think": mode, "no_think": mode, "mode_following": 0.98}
    (tmp_path / "sft.json").write_text(json.dumps(report))
    console = Console(file=io.StringIO(), width=80)
    console.print(model_table(tmp_path, order=["base", "sft"]))
    assert isinstance(console.file, io.StringIO)
    row = next(line for line in console.file.getvalue().splitlines() if "sft" in line)
    for cell in ("0.92 M", "50.0 [45.0, 55.5]", "61", "98.0", "2.0"):
        assert cell in row
