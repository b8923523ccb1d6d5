"""What every process of the sandbox asks of the kernel, and system calls that have no name in the C library."""

import ctypes
import os
import resource
import sys

from nanochat.jobs.seccomp import libc

MAX_FILE_BYTES = 16_000_000  # at the lowest tier, where files can be written at all
MAX_OPEN_FILES = 64

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 4, 23, 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 39, 47, 4
CAPABILITIES_VERSION, NUM_CAPABILITIES, SIGKILL = 0x20080522, 64, 9


def set_limits(cpu_seconds: int, memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform != "darwin":  # whose kernel refuses it
        limits[resource.RLIMIT_AS] = memory_bytes
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)  # a site's own limit may be lower
        resource.setrlimit(kind, (most, most))


def die_in(seconds: int) -> None:
    libc("alarm", seconds)  # not signal.alarm: that module takes 6 ms to import


def die_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends."""
    if sys.platform != "linux":
        return
    libc("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already


def hide_memory() -> None:
    """Other processes of the user may not look into this one, nor into those that it forks."""
    libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_capabilities() -> None:
    """For good, so that the superuser can do here no more than anybody. OSError if something is left."""
    for capability in range(NUM_CAPABILITIES):
        if is_in_bounding_set(capability):
            try:
                libc("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
            except PermissionError:
                break  # a normal user, who has nothing to drop
    libc("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc("capset", header, nothing)
    found = (ctypes.c_uint32 * 6)()
    libc("capget", header, found)
    if any(found) or libc("prctl", PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise OSError("capabilities are left")


def is_in_bounding_set(capability: int) -> bool:
    try:
        return libc("prctl", PR_CAPBSET_READ, capability, 0, 0, 0) == 1
    except OSError:  # a number that this kernel does not know
        return False


def system_call(number: int, *arguments: object) -> int:
    return libc("syscall", number, *arguments)
