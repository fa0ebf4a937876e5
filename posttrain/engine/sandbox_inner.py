"""The inside of the sandbox: walls first, then the program. Its text is handed to `python -c`; see engine/sandbox.py.

Standard library only, and little of it: nothing else can be read in there, and every run pays for its imports. The
order matters. Namespaces and mounts need the privileges that a new user namespace gives; then these are dropped, limits
are set, and a filter takes the system calls that start processes, open sockets or reach for the kernel's rarer parts.
The filter leaves one process with one thread, so that its address space bounds all memory and nothing outlives it.

Sources: man pages namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2), capabilities(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000 | 0x02000000
"""User, mount, network, process, IPC, host name, control group."""
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_SETATTR = 442
"""Its number is the same on every architecture; Linux 5.12 and later."""
STAGING = "/proc"
"""Where the new root is put together: a folder that every system has, and from which nothing is needed."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
BOX = "/box"
"""The program's own folder: in memory, of limited size, gone with the program."""

# Number of each system call on x86_64 and on aarch64; 0: not there.
FORBIDDEN = {
    # processes, threads, other programs
    "fork": (57, 0), "vfork": (58, 0), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "prctl": (157, 167), "seccomp": (317, 277),
    # signals
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199),
    # memory that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442),
    # parts of the kernel that programs rarely need and attackers like
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "modify_ldt": (154, 0),
}  # fmt: skip
WRITING = {
    "creat": (85, 0), "openat2": (437, 437), "truncate": (76, 45), "unlink": (87, 0), "unlinkat": (263, 35),
    "rmdir": (84, 0), "mkdir": (83, 0), "mkdirat": (258, 34), "mknod": (133, 0), "mknodat": (259, 33),
    "rename": (82, 0), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, 0), "linkat": (265, 37),
    "symlink": (88, 0), "symlinkat": (266, 36), "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, 0), "lchown": (94, 0), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "utime": (132, 0), "utimes": (235, 0), "utimensat": (280, 88),
}  # fmt: skip
"""System calls that change files, but for opening one to write: `forbid` looks at the flags of `open` and `openat`."""
OPEN, OPENAT = (2, 0), (257, 56)
OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of the tables, AUDIT_ARCH of seccomp(2))."""

_LOAD, _JUMP, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ARCHITECTURE, _NUMBER, _SECOND, _THIRD = 4, 0, 24, 32
"""Offsets in seccomp_data: architecture, number, low halves of two arguments."""
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000
"""Bit of system calls by x86_64's second convention: refused, since the table does not list them."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def machine_is_known() -> bool:
    """Whether the filter's numbers hold here."""
    return sys.platform == "linux" and os.uname().machine in ARCHITECTURES


def forbid(*, writing: bool) -> None:
    """From now on every call of FORBIDDEN fails with EPERM in this process, root or not; there is no way back.

    `writing`: so does every change of a file. An unknown architecture raises KeyError: the tables have no numbers.
    """
    steps = _filter(os.uname().machine, writing=writing)
    program = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    libc = _libc()
    _checked("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked("seccomp", libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(_FilterProgram(len(steps), program)), 0, 0))


def _filter(machine: str, *, writing: bool) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, value) of each step; jumps are relative, the last two steps the verdicts."""
    column, architecture = ARCHITECTURES[machine]
    table = {**FORBIDDEN, **WRITING} if writing else FORBIDDEN
    numbers = [numbers[column] for numbers in table.values() if numbers[column]]
    opening = [
        (_EQUAL, 1, 0, OPEN[column] or _X32),
        (_EQUAL, 2, 4, OPENAT[column]),
        (_LOAD, 0, 0, _SECOND),
        (_JUMP, 0, 0, 1),
        (_LOAD, 0, 0, _THIRD),
        (_ANY_BIT, 1, 0, OPEN_TO_WRITE),
    ]
    tail = [*(opening if writing else []), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    refuse = len(numbers) + len(tail) - 1
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER_EQUAL, refuse, 0, _X32),
        *((_EQUAL, refuse - i - 1, 0, number) for i, number in enumerate(numbers)),
        *tail,
    ]


def drop_capabilities() -> None:
    """Give up every privilege, those over the own namespaces included (capget's version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _checked("capset", _libc().capset(header, (ctypes.c_uint32 * 6)()))


def enter_namespaces(parent: int, readable: list[str], box_bytes: int, box_files: int) -> None:
    """Leave network, processes and file system behind; returns in the first process of the new namespaces.

    The process that called waits for it and ends as it ended.
    """
    libc = _libc()
    _checked("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)  # it died before
    user, group = os.getuid(), os.getgid()
    _checked("unshare", libc.unshare(NEW_NAMESPACES))
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    _checked("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _change_root(libc, readable, f"size={box_bytes},nr_inodes={box_files},mode=700")


def _change_root(libc: ctypes.CDLL, readable: list[str], box: str) -> None:
    def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        done = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
        _checked(f"mount {target}", done)

    def read_only(target: str, extra: int, at: int) -> None:
        attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | extra, 0, 0, 0)
        done = libc.syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), at, attributes, ctypes.sizeof(attributes))
        _checked(f"mount_setattr {target}", done)

    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", STAGING, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in (*readable, *DEVICES):
        target = STAGING + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path):
            os.mkdir(target)
            mount(path, target, "", MS_BIND | MS_REC)
            read_only(target, ATTR_NOSUID | ATTR_NODEV, AT_RECURSIVE)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            mount(path, target, "", MS_BIND)
    os.mkdir(STAGING + BOX)
    mount("tmpfs", STAGING + BOX, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, box)
    read_only(STAGING, 0, 0)
    os.chdir(STAGING)
    # The old root comes to lie on the new one and is taken off: pivot_root(2), "pivot_root(".", ".")".
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    _checked("pivot_root", libc.syscall(number, b".", b"."))
    _checked("umount2", libc.umount2(b".", MNT_DETACH))
    os.chdir(BOX)


def limit(*, cpu_s: int, memory_bytes: int, file_bytes: int, open_files: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(what, (most, most))


def main() -> None:
    """Standard input: one marshalled tuple (see engine/sandbox.py). The first argument: the descriptor of the report.

    The report is `ready` once the walls stand, the token when the program came to its end, and a last line with the
    exit code (negative: a signal) and the CPU seconds, from a process that the program cannot touch.
    """
    report = int(sys.argv[1])
    with os.fdopen(os.dup(0), "rb") as stdin:
        token, program, limits, walls = marshal.load(stdin)
    if walls is not None:
        enter_namespaces(*walls)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    drop_capabilities()
    child = os.fork()
    if child == 0:
        run(program, report, token, limits)
    _, status, used = os.wait4(child, 0)
    ended = f"\nended {os.waitstatus_to_exitcode(status)} {used.ru_utime + used.ru_stime:.3f}\n"
    os.write(report, ended.encode())
    os._exit(0)


def run(program: bytes, report: int, token: bytes, limits: dict[str, int]) -> None:
    _checked("prctl", _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    forbid(writing=False)
    limit(**limits)
    os.write(report, b"ready\n")
    exec(compile(program, "<program>", "exec"), {"__name__": "<program>"})
    os.write(report, token)
    os._exit(0)  # no exit handler of the program runs any more


if __name__ == "__main__":
    main()
