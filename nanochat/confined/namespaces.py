"""Namespaces: a process gets a view of the machine of its own, with no network, no other processes, and few files.

A normal user may have them where the site allows user namespaces. The superuser goes the same way.
"""

from __future__ import annotations

import os

from nanochat.confined.kernel import system_call
from nanochat.confined.tiers import NAMESPACES
from nanochat.jobs.seccomp import libc

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence

# name -> flag of unshare(2), and its link in /proc/self/ns
FLAGS = {
    "user": (0x10000000, "user"),
    "mount": (0x00020000, "mnt"),
    "pid": (0x20000000, "pid_for_children"),
    "network": (0x40000000, "net"),
    "ipc": (0x08000000, "ipc"),
    "uts": (0x04000000, "uts"),
}
assert tuple(FLAGS) == NAMESPACES
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 1 << 14, 1 << 18
# flags of statvfs -> flags of mount: what is set at the origin must stay set, or the kernel refuses
INHERITED = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # noexec, noatime, nodiratime, relatime
MNT_DETACH = 2
HOST_NAME = b"sandbox"


def enter(folder: str, *, readable: Sequence[str], hidden: Sequence[str]) -> dict[str, str]:
    """Layer -> why it did not take effect, "" if it did. The namespace of processes is for the children of this one.

    `folder` stays where it is and is empty; besides it there are the files of `readable`, less those beneath `hidden`.
    """
    layers = unshare()
    if layers["mount"]:
        return layers | {"root": layers["mount"]}
    try:
        make_root(folder, readable, hidden)
    except OSError as error:
        return layers | {"root": f"a root of its own: {error.strerror or error}"}
    return layers | {"root": ""}


def unshare() -> dict[str, str]:
    """All six, or all but the network: some sites allow no network namespaces, and the filter refuses sockets anyway."""
    user, group, before = os.geteuid(), os.getegid(), links()
    without = ""
    try:
        libc("unshare", sum(flag for flag, _ in FLAGS.values()))
    except OSError as error:
        without = f"namespaces: {error.strerror}"
        try:
            libc("unshare", sum(flag for name, (flag, _) in FLAGS.items() if name != "network"))
        except OSError:
            return dict.fromkeys(NAMESPACES, without)
    after = links()
    layers = {name: "" if after[name] != before[name] else without or "is the old one" for name in NAMESPACES}
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            write(f"/proc/self/{file}", text)
        libc("sethostname", HOST_NAME, len(HOST_NAME))
    except OSError as error:
        layers["user"] = f"a user namespace without rights: {error.strerror}"  # a site may allow no more than that
    return layers


def links() -> dict[str, str]:
    found = {}
    for name, (_, link) in FLAGS.items():
        try:
            found[name] = os.readlink(f"/proc/self/ns/{link}")
        except FileNotFoundError:  # of processes, until there is one
            found[name] = ""
    return found


def write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def make_root(folder: str, readable: Sequence[str], hidden: Sequence[str]) -> None:
    """A small root in memory, read-only, with nothing but these files at their places. OSError if that is not what came out."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    covered = [path for path in hidden if os.path.isdir(path)]
    mount("sandbox", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4k,mode=755")
    for path in readable:
        if os.path.exists(path):
            bind(path, folder + path)
    for path in covered:
        mount("sandbox", folder + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,nr_inodes=2,mode=755")
    os.makedirs(folder + folder, exist_ok=True)
    mount(None, folder, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(folder)
    system_call(PIVOT_ROOT[os.uname().machine], b".", b".")  # the new root and, upon it, the old one
    libc("umount2", b".", MNT_DETACH)
    os.chdir(folder)
    expected = {path.split("/")[1] for path in (*readable, folder)}
    if not os.statvfs("/").f_flag & MS_RDONLY or not set(os.listdir("/")) <= expected:
        raise OSError("it is not what was built")


def bind(path: str, target: str) -> None:
    """The same file or folder at another place, read-only."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(path, target, None, MS_BIND)
    flags = os.statvfs(target).f_flag
    kept = sum(to for of, to in INHERITED.items() if flags & of)
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    libc("mount", *arguments, flags, None if options is None else options.encode())
