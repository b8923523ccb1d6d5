"""Landlock (Linux 5.13 and later, where it is switched on): a process gives up all files but those that it names."""

from __future__ import annotations

import os
import stat
import struct

from nanochat.confined.kernel import system_call

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on all machines
GET_VERSION, RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIRECTORY = 1 << 2, 1 << 3
# version -> number of the rights about files that it knows: all of them are given up but where a rule says so
NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NETWORK_VERSION, NETWORK_RIGHTS = 4, 0b11  # bind and connect, TCP
SCOPE_VERSION, SCOPES = 6, 0b11  # abstract unix sockets, signals


def restrict(*, readable: Sequence[str], listable: Sequence[str]) -> None:
    """From now on this process may read the files of `readable` and beneath, and list the folders of `listable` and beneath.

    Nothing else: no writing, no TCP, no signals to others. For good, for all that it starts. OSError where the kernel refuses.
    """
    version = system_call(CREATE_RULESET, None, 0, GET_VERSION)
    rights = (1 << NUM_RIGHTS[min(version, max(NUM_RIGHTS))]) - 1
    ruleset = create(rights, version)
    for path in readable:
        allow(ruleset, path, READ_FILE | READ_DIRECTORY)
    for path in listable:
        allow(ruleset, path, READ_DIRECTORY)
    system_call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    for path in ("/", "/proc/self/status", "/etc/hostname", "/etc/passwd"):
        if is_open(path):
            raise OSError(f"{path} can be read all the same")


def create(rights: int, version: int) -> int:
    words = [rights, NETWORK_RIGHTS, SCOPES][: 3 if version >= SCOPE_VERSION else 2 if version >= NETWORK_VERSION else 1]
    attributes = struct.pack(f"={len(words)}Q", *words)
    return system_call(CREATE_RULESET, attributes, len(attributes), 0)


def allow(ruleset: int, path: str, rights: int) -> None:
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(there).st_mode):
            rights &= READ_FILE
        system_call(ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights, there), 0)
    finally:
        os.close(there)


def is_open(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True
