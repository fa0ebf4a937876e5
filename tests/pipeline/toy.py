"""A toy chain in a temporary folder: three stages that use posttrain.job as real ones do, and take milliseconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import sys, time
from pathlib import Path
from posttrain.job import open_job
from posttrain.errors import StageError

stage, source, target = sys.argv[1:4]
with open_job(stage) as job:
    text = Path(source).read_text() if source != "-" else ""
    for step in range(1, 4):
        job.log({"train/loss": 1.0 / step, "perf/tokens_per_second": 100.0}, step, 3)
    wait = Path(f"{stage}.wait")
    if wait.exists():
        Path(f"{stage}.started").touch()
        time.sleep(60)
    if Path(f"{stage}.fail").exists():
        raise StageError("the sky is green, wanted blue")
    with job.publish(Path(target)) as folder:
        (folder / "text").write_text(text + stage + str(job.params.seed))
    job.report({"length": len(text), "think": {"avg": {"value": 0.5, "low": 0.4, "high": 0.6}}})
"""

PIPELINE = """
stages:
  a:
    desc: first
    cmd: python stage.py a - models/a
    deps: [stage.py]
    params: [seed, sft]
    outs: [models/a]
    metrics: [{reports/a.json: {cache: false}}]
    plots: [{reports/curves/a.csv: {cache: false, x: step, y: train/loss}}]
  b:
    desc: second
    cmd: python stage.py b models/a/text models/b
    deps: [stage.py, models/a]
    params: [seed]
    outs: [models/b]
    metrics: [{reports/b.json: {cache: false}}]
  evaluate:
    foreach: {b: {previous: models/a}}
    do:
      desc: third
      cmd: python stage.py evaluate@${key} models/b/text data/evaluations/${key}
      deps: ["models/${key}", "${item.previous}", stage.py]
      params: [seed]
      outs: ["data/evaluations/${key}"]
      metrics: [{"reports/evaluate/${key}.json": {cache: false}}]
"""


def environment(**extra: str) -> dict[str, str]:
    """For commands of the toy chain: our Python first, our modules importable."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", **extra}


def make_chain(folder: Path) -> Path:
    """A git and DVC repository with the toy chain and the default parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text(".work/\nmodels/\ndata/\nmlflow.db*\nmlartifacts/\n")
    (folder / ".dvcignore").write_text("__pycache__/\n.work/\n")
    shutil.copy(ROOT / "profiles" / "tiny.yaml", folder / "params.yaml")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, env=environment(), check=True)
    return folder


def run(folder: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A command in the chain's folder, to its end."""
    return subprocess.run(
        command, cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=300, check=False
    )


def running_in(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")) == folder and (line := (path / "cmdline").read_bytes()):
                found.append(line.replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found
