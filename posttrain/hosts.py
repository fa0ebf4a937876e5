"""Several machines: the host file, and how the processes of a stage are started on the machines that it lists.

The first host is this machine. On each other one the same command is started in the same folder, which all of them
must see at the same path (a shared file system), by `ssh` without a password, under the guard: whatever ends this
process also ends what it started elsewhere. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config_fields import ConfigError
from posttrain.machine import own_address

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20")
SIOCGIFADDR = 0x8915
_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    """What the other hosts reach it by: a name or an IPv4 address."""
    slots: int
    """Processes of a stage there; on machines with GPUs, their number."""


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in their order; lines are `name slots=N` as in DeepSpeed's host files, `#` starts a comment.

    Raises ConfigError with file and line for any other line, and where the first host is not this machine.
    """
    if not path.is_file():
        raise ConfigError(f"system.yaml: hostfile: got '{path}', wanted a file")
    hosts: dict[str, Host] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        found = _LINE.fullmatch(text)
        if text and (found is None or found["name"] in hosts):
            raise ConfigError(f"{path}:{number}: got {text!r}, wanted `name slots=N`, each name once")
        if found:
            hosts[found["name"]] = Host(found["name"], int(found["slots"]))
    if not hosts:
        raise ConfigError(f"{path}: names no host, wanted lines `name slots=N`")
    first = next(iter(hosts))
    if not is_this_machine(first):
        raise ConfigError(f"{path}: first host: got '{first}', wanted this machine, by a name that the others know")
    return list(hosts.values())


def is_this_machine(name: str) -> bool:
    """Whether the address of `name` is one of this machine's."""
    try:
        with socket.socket() as probe:
            probe.bind((name, 0))
    except OSError:
        return False
    return True


def start_on(host: str, folder: Path, variables: Mapping[str, str], command: Sequence[str], log: Path) -> int:
    """Start `command` on `host` in `folder`; the pid of the ssh process, with which the command ends."""
    words = ["env", *(f"{name}={value}" for name, value in variables.items())]
    words += [sys.executable, "-m", "posttrain.guard", "--", *command]
    remote = f"cd {shlex.quote(str(folder))} && exec {shlex.join(words)}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SSH, host, remote], stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    _STARTED.append(process)
    return process.pid


_STARTED: list[subprocess.Popen[bytes]] = []
"""Kept, so that the pipes to them stay open as long as this process lives."""


def interface_towards(address: str) -> str | None:
    """The name of the network interface by which `address` is reached; None where it cannot be told.

    gloo takes the interface of the machine's own name otherwise, which is often the loopback, or none.
    """
    import fcntl  # not everywhere, and needed here alone

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        own = own_address(address)
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    return None


def remote_command() -> list[str]:
    """This program's own command line."""
    return [sys.executable, *sys.orig_argv[1:]]


def carried() -> dict[str, str]:
    """Variables of this process without which the command would not be the same elsewhere."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
