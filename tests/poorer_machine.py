"""Run a command on a machine that offers less:  python tests/poorer_machine.py landlock network -- command

The kernel says what it says on a machine that lacks these: user (no user namespaces), network (no network namespaces),
landlock (an older kernel), filter (a kernel without seccomp filters).
"""

import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanochat.jobs.seccomp import (
    ALLOW,
    FIRST_ARGUMENT,
    IF_EQUAL,
    LOAD,
    NUMBER,
    PR_SET_SECCOMP,
    RETURN,
    install_filter,
    instruction,
    libc,
    refusal,
)  # fmt: skip

LANDLOCK_CREATE_RULESET = 444
PRCTL = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
CLONE_NEWUSER = 0x10000000


def main() -> None:
    end = sys.argv.index("--")
    for name in sys.argv[1:end]:
        {"user": no_user, "network": no_network, "landlock": no_landlock, "filter": no_filter}[name]()
    command = sys.argv[end + 1 :]
    os.execvp(command[0], command)


def no_user() -> None:
    in_own_namespace("max_user_namespaces")


def no_network() -> None:
    in_own_namespace("max_net_namespaces")


def in_own_namespace(limit: str) -> None:
    """A site's limit; in a namespace of our own, so that the machine keeps its own."""
    user, group = os.geteuid(), os.getegid()
    libc("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    Path(f"/proc/sys/user/{limit}").write_text("0")


def no_landlock() -> None:
    install_filter(
        [
            instruction(LOAD, NUMBER),
            instruction(IF_EQUAL, LANDLOCK_CREATE_RULESET, 0, 1),
            instruction(RETURN, refusal(errno.ENOSYS)),
            instruction(RETURN, ALLOW),
        ]
    )


def no_filter() -> None:
    install_filter(
        [
            instruction(LOAD, NUMBER),
            instruction(IF_EQUAL, PRCTL, 1, 0),
            instruction(RETURN, ALLOW),
            instruction(LOAD, FIRST_ARGUMENT),
            instruction(IF_EQUAL, PR_SET_SECCOMP, 0, 1),
            instruction(RETURN, refusal(errno.EINVAL)),
            instruction(RETURN, ALLOW),
        ]
    )


if __name__ == "__main__":
    main()
