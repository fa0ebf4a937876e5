"""The processes of one stage: on this machine copies of this one, made before it has done anything.

A CPU trains small models faster with two processes of one thread than with one of two: their arithmetic is too short to
be divided, their Python runs side by side. The copies (fork) share what was imported, and die with the first process.
On other machines, which a host file names, the same command is started anew (posttrain.hosts). Where a launcher
(`torchrun`, `deepspeed`) has started the ranks, nothing is started here.

Every rank runs the same program and takes its share of the work in posttrain.engine.distributed; files, tracking and
messages are the first rank's alone (posttrain.job). Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from posttrain.errors import StageError
from posttrain.files import write_atomic
from posttrain.guard import die_with_parent
from posttrain.hosts import Host, carried, interface_towards, remote_command, start_on
from posttrain.machine import free_port

END_SECONDS = 60.0
"""For the other ranks to end after the first one has."""
LAST_WORDS_SECONDS = 2.0
"""For the other ranks to say what is wrong, when the first one has failed."""


class RankError(StageError):
    """Another rank of the stage failed: names it, and where its output is."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a rank says when it fails."""

    rank: int
    when: float
    """time.time(): the clocks of several machines may differ by milliseconds; 0: unknown, it left no word."""
    code: int | None
    """Exit code of a known error; None: a crash."""
    message: str


@dataclass(slots=True)
class Ranks:
    """This process among those of its stage."""

    rank: int
    folder: Path
    """Where the other ranks leave their output (`<rank>.log`) and how they failed (`<rank>.json`)."""
    _others: dict[int, int] = field(default_factory=dict)
    """Rank -> pid of those that still run, of another machine's that of its ssh; empty in all but the first."""
    _watching: bool = False
    _failed: list[Failure] = field(default_factory=list)

    def watch(self) -> None:
        """From now on the end of another rank raises RankError in the main thread, unless it ended well."""
        if self._others:
            self._watching = True
            signal.signal(signal.SIGCHLD, self._look)
            self._look(signal.SIGCHLD, None)  # one that has ended already sends no more signal

    def _look(self, number: int, frame: FrameType | None) -> None:
        if self._watching:
            self._take()
            self._refuse_failed()

    def wait(self) -> None:
        """The stage is done: the others must end by themselves. Raises RankError when one does not, or failed."""
        self._watching = False
        self._collect(END_SECONDS)
        late = sorted(self._others)
        self.kill()
        self._refuse_failed()
        if late:
            raise self.error(late[0], f"did not end within {END_SECONDS:.0f} s of the first one")

    def _refuse_failed(self) -> None:
        for failure in self._failed:
            raise self.error(failure.rank, failure.message)

    def error(self, rank: int, message: str) -> RankError:
        """What a person is told of another rank, with where to read more."""
        return RankError(f"rank {rank}: {message}; its output: {self.folder / f'{rank}.log'}")

    def failures(self) -> list[Failure]:
        """How the others failed before this one took notice, the earliest first; ends all of them."""
        self._watching = False
        self._collect(LAST_WORDS_SECONDS)
        self.kill()
        return sorted(self._failed, key=lambda failure: failure.when)

    def fail(self, code: int | None, message: str) -> None:
        """Say how this rank failed."""
        failure = Failure(self.rank, time.time(), code, message)
        write_atomic(self.folder / f"{self.rank}.json", json.dumps(asdict(failure)))

    def kill(self) -> None:
        """End what still runs of the others."""
        self._watching = False
        while self._others:
            _, pid = self._others.popitem()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _collect(self, seconds: float) -> None:
        """Wait for the others to end, and take note of those that did not end well."""
        end = time.monotonic() + seconds
        while self._others and time.monotonic() < end:
            self._take()
            time.sleep(0.01)

    def _take(self) -> None:
        for rank, pid in list(self._others.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._others[rank]
                self._note(rank, os.waitstatus_to_exitcode(status))

    def _note(self, rank: int, code: int) -> None:
        said = self.folder / f"{rank}.json"
        if said.is_file():
            self._failed.append(Failure(**json.loads(said.read_text(encoding="utf-8"))))
        elif code:
            how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._failed.append(Failure(rank, 0.0, None, how))


def launched_rank() -> int:
    """The rank that a launcher, or the first rank on another machine, gave this process; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def is_launched() -> bool:
    """Whether this process was started as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def leave_launched() -> bool:
    """For work that is not shared: the first rank goes on alone, and true; the others have nothing to do."""
    first = launched_rank() == 0
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return first


def start_ranks(count: int, folder: Path, hosts: Sequence[Host] = ()) -> Ranks:
    """Make `count` - 1 copies of this process, which return from here too, with their output in `folder`.

    With `hosts`: as many processes as they have slots, those of the first host as copies of this one. Where this
    process was launched as one of several, it is that one and starts none.

    To be called while this process has one thread and has not computed anything: neither threads nor the state of a
    device survive a fork.
    """
    if is_launched():
        _choose_interface(os.environ["MASTER_ADDR"])
        return Ranks(launched_rank(), folder)
    slots = [host.slots for host in hosts] or [count]
    if sum(slots) == 1:
        return Ranks(0, folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meeting = {"MASTER_ADDR": hosts[0].name if hosts else "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = meeting | {"WORLD_SIZE": str(sum(slots))}
    os.environ |= shared | {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(slots[0])}
    _choose_interface(meeting["MASTER_ADDR"])
    first = os.getpid()
    ranks = Ranks(0, folder)
    for rank in range(1, slots[0]):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _become(rank, first, folder / f"{rank}.log")
            return Ranks(rank, folder)
        ranks._others[rank] = pid
    for rank, host, local in _elsewhere(hosts):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(host.slots)}
        ranks._others[rank] = start_on(host.name, Path.cwd(), carried() | own, remote_command(), folder / f"{rank}.log")
    return ranks


def _elsewhere(hosts: Sequence[Host]) -> Iterator[tuple[int, Host, int]]:
    """(rank, host, rank within it) of every process on the hosts but the first."""
    places = [(host, local) for host in hosts for local in range(host.slots)]
    for rank, (host, local) in enumerate(places):
        if host != hosts[0]:
            yield rank, host, local


def _choose_interface(address: str) -> None:
    """Let gloo talk over the interface by which the first rank is reached, unless a person has said which."""
    name = interface_towards(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _become(rank: int, first: int, log: Path) -> None:
    """This copy is `rank` from now on, writes to `log`, and dies when the first process does."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != first:
        os._exit(1)
    # The first process is asked to stop, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
