"""Several machines: the host file, and a stage on two hosts, each with a network of its own on this machine."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posttrain.config import ConfigError
from posttrain.hosts import Host, interface_towards, read_hostfile
from tests.test_ranks import finish, gone, pids, project, start

__all__ = ["project"]  # the fixture
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")

JOIN = """
mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add far &&
ip link add near0 type veth peer name far0 netns far &&
ip addr add 10.77.0.1/24 dev near0 && ip link set near0 up && ip link set lo up &&
nsenter --net=/run/netns/far sh -c "ip addr add 10.77.0.2/24 dev far0 && ip link set far0 up && ip link set lo up"
"""
"""Two networks joined by one virtual cable; both end with the last process in them."""
SSH = f"""#!{sys.executable}
import os, subprocess, sys, threading
host, command = sys.argv[-2:]
if host != "10.77.0.2":
    sys.exit(f"no route to {{host}}")
login = ["env", "-i", "PATH=" + os.environ["PATH"], "sh", "-c", command]
there = subprocess.Popen(["nsenter", "--net=/run/netns/far", *login], stdin=subprocess.PIPE)

def forward():
    while os.read(0, 1024):
        pass
    there.stdin.close()

threading.Thread(target=forward, daemon=True).start()
sys.exit(there.wait())
"""
"""Of ssh what counts here: no variable comes along, the input's end does, and the exit code comes back."""


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_and_slots_in_their_order(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# two machines\n127.0.0.1 slots=2\n\nfar.example  slots=4  # bigger\n")
    assert read_hostfile(path) == [Host("127.0.0.1", 2), Host("far.example", 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("127.0.0.1\n", r"hosts:1: got '127.0.0.1', wanted `name slots=N`"),
        ("127.0.0.1 slots=0\n", r"hosts:1: got '127.0.0.1 slots=0'"),
        ("127.0.0.1 slots=1\n127.0.0.1 slots=1\n", r"hosts:2: got .*each name once"),
        ("# nobody\n", r"hosts: names no host"),
        ("192.0.2.1 slots=1\n", r"hosts: first host: got '192.0.2.1', wanted this machine"),
    ],
)
def test_what_a_hostfile_may_not_say_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_hostfile(hostfile(tmp_path, text))


def test_a_missing_hostfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hostfile: got '.*nowhere', wanted a file"):
        read_hostfile(tmp_path / "nowhere")


def test_the_interface_is_the_one_on_the_way() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no address") is None


@pytest.fixture
def two_hosts(project: Path) -> tuple[str, ...]:
    """A command that makes two networks and runs the command behind it in one of them; `ssh` leads to the other."""
    within = ("unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c")
    made = subprocess.run([*within, JOIN], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine lets no user make networks of their own: {made.stderr.strip()[-200:]}")
    ssh = project / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    (project / "hosts").write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
    (project / "system.yaml").write_text("hostfile: hosts\nthreads: 1\n")
    return ("env", f"PATH={ssh.parent}:{os.environ['PATH']}", *within, f'{JOIN.strip()} && exec "$@"', "sh")


def curve(project: Path) -> list[list[float]]:
    with (project / "reports/curves/sft.csv").open(newline="") as lines:
        return [[float(cell) for cell in row] for row in list(csv.reader(lines))[1:]]


@pytest.mark.slow
def test_two_hosts_train_as_one_process_does(project: Path, two_hosts: tuple[str, ...]) -> None:
    results = {}
    for hosts in (2, 1):
        if hosts == 1:
            (project / "system.yaml").write_text("processes: 1\nthreads: 1\n")
        code, _, err = finish(start("tests.hosts_job", project, *(two_hosts if hosts == 2 else ())))
        log = project / ".work/ranks/sft/1.log"
        assert code == 0, err + (log.read_text() if log.is_file() else "")
        report = json.loads((project / "reports/sft.json").read_text())
        assert (report.pop("processes"), report.pop("networks")) == (hosts, hosts)
        weights = torch.load(project / "models/weights.pt", weights_only=True)
        results[hosts] = (report, curve(project), weights)
    (report, steps, weights), (alone, alone_steps, alone_weights) = results[2], results[1]
    # As in tests/loops/test_shared.py: AdamW turns rounding errors into steps, so weights agree less than losses do.
    assert report == pytest.approx(alone, rel=2e-3)
    assert len(steps) == report["steps"] and steps == [pytest.approx(row, rel=2e-3, abs=1e-4) for row in alone_steps]
    assert max(float((weights[name] - alone_weights[name]).abs().max()) for name in weights) < 2e-3


def test_a_crash_on_the_other_host_is_the_end_of_the_stage(project: Path, two_hosts: tuple[str, ...]) -> None:
    code, _, err = finish(start("crash", project, *two_hosts))
    assert code == 1
    assert "sft: rank 1: ZeroDivisionError: one over nothing" in err
    assert "Traceback" in (project / ".work/ranks/sft/1.log").read_text()


def test_a_host_that_does_not_answer_is_named(project: Path, two_hosts: tuple[str, ...]) -> None:
    (project / "hosts").write_text("10.77.0.1 slots=1\n10.77.0.9 slots=1\n")
    code, _, err = finish(start("crash", project, *two_hosts))
    assert code == 1
    assert "rank 1: ended with exit code 1; its output: .work/ranks/sft/1.log" in err
    assert (project / ".work/ranks/sft/1.log").read_text() == "no route to 10.77.0.9\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_on_the_other_host_outlives_the_first(
    project: Path, two_hosts: tuple[str, ...], number: signal.Signals
) -> None:
    process = start("wait", project, *two_hosts)
    first, second = pids(project)
    os.kill(first, number)
    assert gone(first) and gone(second)
    finish(process)


def test_a_launcher_may_start_the_processes(project: Path) -> None:
    (project / "system.yaml").write_text("threads: 1\n")
    code, out, err = finish(start("shares", project, *TORCHRUN))
    assert code == 0, err
    assert (project / "data/squares.txt").read_text() == "[0, 1, 4, 9, 16]"
    assert json.loads((project / "reports/sft.json").read_text()) == {"processes": 2}
    assert out.count("once") == 1


def test_a_launchers_further_processes_leave_work_that_is_not_shared(project: Path) -> None:
    (project / "system.yaml").write_text("threads: 1\n")
    code, out, err = finish(start("alone", project, *TORCHRUN))
    assert code == 0, err
    assert json.loads((project / "reports/sft.json").read_text()) == {"processes": 1}
    assert out.count("once") == 1
