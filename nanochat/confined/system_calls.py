"""A filter on system calls that lets through what an interpreter needs to compute, and nothing else.

No sockets, no further processes, no signals to others, no new privileges. Files can be opened for reading only: whether a file
may be read at all is for the other layers to say, because a filter sees numbers and never a path.
"""

from __future__ import annotations

import errno
import os

from nanochat.confined.kernel import system_call
from nanochat.jobs.seccomp import (
    ALLOW,
    ARCHITECTURE,
    FIRST_ARGUMENT,
    IF_AT_LEAST,
    IF_EQUAL,
    LOAD,
    MACHINES,
    NUMBER,
    RETURN,
    X32_BIT,
    install_filter,
    instruction,
    refusal,
)

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable

# name: number on x86_64, on aarch64
ALLOWED = {
    # what is open already, or was opened for reading
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "preadv": (295, 69), "pwritev": (296, 70), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "getdents64": (217, 61),
    # what the names of files tell
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "statfs": (137, 43), "fstatfs": (138, 44), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    # threads; what starts one is below
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96), "gettid": (186, 178),
    "membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "getcpu": (309, 168),
    # its own signals and clocks
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    # who and where it is
    "getpid": (39, 172), "getppid": (110, 173), "getpgid": (121, 155), "getpgrp": (111, None), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163),
    "getrusage": (98, 165), "getrandom": (318, 278),
    # the end; of a child, for the judge
    "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260),
}  # fmt: skip
OPEN, OPENAT, CLONE, CLONE3, PRLIMIT, PRCTL, FCNTL, IOCTL = (
    (2, None), (257, 56), (56, 220), (435, 435), (302, 261), (157, 167), (72, 25), (16, 29),
)  # fmt: skip
COLUMN = {"x86_64": 0, "aarch64": 1}

KILL_PROCESS = 0x80000000
IF_ANY_BIT = 0x45
WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY and O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
CLONE_THREAD, CLONE_NEW_ANYTHING = 0x00010000, 0x7E020080
NAMES_OF_THREADS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of memory
DUPLICATES_AND_FLAGS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
QUESTIONS_TO_TERMINALS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, close on exec
FIRST_OF_LATE = 424  # calls of Linux 5.1 and later: the C library goes without where a call is unknown, not where it is refused
FORBIDDEN = {"socket": (41, 198), "memfd_create": (319, 279), "unshare": (272, 97), "kill": (62, 129), "execve": (59, 221)}


def refuse_calls() -> None:
    """For this process, which must have one thread, for good. OSError if the filter is not there afterwards."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"system calls are known for {' and '.join(MACHINES)}, and this is {machine}")
    install_filter(make_filter(machine))
    try_out(COLUMN[machine])


def make_filter(machine: str) -> list[bytes]:
    column = COLUMN[machine]
    code = [
        instruction(LOAD, ARCHITECTURE),
        instruction(IF_EQUAL, MACHINES[machine][0], 1, 0),
        instruction(RETURN, KILL_PROCESS),  # 32-bit code numbers its calls otherwise
        instruction(LOAD, NUMBER),
        *when(IF_AT_LEAST, X32_BIT, [instruction(RETURN, KILL_PROCESS)]),
    ]
    for numbers in ALLOWED.values():
        code += on(numbers[column], [instruction(RETURN, ALLOW)])
    code += on(OPEN[column], no_bits_of(WRITING, argument=1))
    code += on(OPENAT[column], no_bits_of(WRITING, argument=2))
    code += on(CLONE[column], [load(0), *when(IF_ANY_BIT, CLONE_THREAD, no_bits_of(CLONE_NEW_ANYTHING, 0)), REFUSED])
    code += on(PRLIMIT[column], [load(2), *unless(0, REFUSED), load(2, upper=True), *unless(0, REFUSED), PASSED])  # reading
    code += on(PRCTL[column], one_of(NAMES_OF_THREADS, argument=0))
    code += on(FCNTL[column], one_of(DUPLICATES_AND_FLAGS, argument=1))
    code += on(IOCTL[column], one_of(QUESTIONS_TO_TERMINALS, argument=1))
    code += when(IF_AT_LEAST, FIRST_OF_LATE, [instruction(RETURN, refusal(errno.ENOSYS))])
    return [*code, REFUSED]


# -- pieces: each is a list of instructions; a comparison counts those that it skips ------------------------------------------

PASSED, REFUSED = instruction(RETURN, ALLOW), instruction(RETURN, refusal(errno.EPERM))


def when(test: int, value: int, then: list[bytes]) -> list[bytes]:
    return [instruction(test, value, 0, len(then)), *then]


def on(number: int | None, then: list[bytes]) -> list[bytes]:
    """For this call; none if this machine has no such call. The pieces end in a verdict, or the next would read an argument."""
    return [] if number is None else when(IF_EQUAL, number, then)


def unless(value: int, then: bytes) -> list[bytes]:
    return [instruction(IF_EQUAL, value, 1, 0), then]


def load(argument: int, *, upper: bool = False) -> bytes:
    return instruction(LOAD, FIRST_ARGUMENT + 8 * argument + (4 if upper else 0))


def no_bits_of(bits: int, argument: int) -> list[bytes]:
    return [load(argument), *when(IF_ANY_BIT, bits, [REFUSED]), PASSED]


def one_of(values: tuple[int, ...], argument: int) -> list[bytes]:
    allowed = [piece for value in values for piece in when(IF_EQUAL, value, [PASSED])]
    return [load(argument), *allowed, REFUSED]


def try_out(column: int) -> None:
    """OSError if something goes through that must not. Asked as here, none of it would do harm."""
    for name, numbers in FORBIDDEN.items():
        expect_refusal(name, lambda number=numbers[column]: system_call(number, 0, 0, 0))  # type: ignore[misc]
    expect_refusal("opening for writing", lambda: os.open(os.curdir, os.O_WRONLY | os.O_TMPFILE, 0o600))
    expect_refusal("fork", fork_and_end)


def fork_and_end() -> None:
    if os.fork() == 0:
        os._exit(0)


def expect_refusal(name: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError as error:
        if error.errno == errno.EPERM:
            return
    raise OSError(f"{name} is not refused")
