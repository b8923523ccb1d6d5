"""A filter on system calls, kept by the kernel for a process and all that it starts: no sockets to the internet.

It is written in the kernel's own instructions (classic BPF over struct seccomp_data) and needs no privilege. It sees numbers,
never what a pointer points to: so it can refuse kinds of sockets, and cannot tell loopback from the internet.
"""

import ctypes
import errno
import os
import struct

# machine -> its number in the kernel's audit, and the number of socket(2) there
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}

LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
X32_BIT, IO_URING_SETUP = 0x40000000, 425
AF_UNIX, AF_NETLINK = 1, 16
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38


def socket_filter(machine: str) -> list[bytes]:
    """socket() of every family but unix and netlink says ENETUNREACH. The jumps of a comparison count instructions to skip."""
    architecture, socket_number = MACHINES[machine]
    return [
        instruction(LOAD, ARCHITECTURE),
        instruction(IF_EQUAL, architecture, 1, 0),
        instruction(RETURN, refusal(errno.ENOSYS)),  # 32-bit programs number their calls otherwise
        instruction(LOAD, NUMBER),
        instruction(IF_AT_LEAST, X32_BIT, 0, 1),
        instruction(RETURN, refusal(errno.ENOSYS)),
        instruction(IF_EQUAL, IO_URING_SETUP, 0, 1),
        instruction(RETURN, refusal(errno.EPERM)),  # a ring opens sockets without a call that a filter sees
        instruction(IF_EQUAL, socket_number, 1, 0),
        instruction(RETURN, ALLOW),
        instruction(LOAD, FIRST_ARGUMENT),
        instruction(IF_EQUAL, AF_UNIX, 2, 0),
        instruction(IF_EQUAL, AF_NETLINK, 1, 0),
        instruction(RETURN, refusal(errno.ENETUNREACH)),
        instruction(RETURN, ALLOW),
    ]


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def refusal(error: int) -> int:
    return REFUSE | error


def install_filter(instructions: list[bytes]) -> None:
    """For this process and all that it starts, for good. OSError where the kernel refuses."""
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


LIBRARY = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *arguments: object) -> int:
    """What a function of the C library that Python 3.11 lacks returns; OSError if it fails."""
    # as unsigned long: of a plain int, the upper half of the register is nobody's, and prctl looks at it
    result = getattr(LIBRARY, name)(*(ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)
