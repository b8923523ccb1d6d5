"""What strace wrote: a program's calls on the files of its world, the points among them, and what a power cut could take."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat.manifest import MANIFEST

LINE = re.compile(r"^(\w+)\((.*)$")
ENDING = re.compile(r"(.*)\)\s+= (.*)$")
DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
NAME = re.compile(r'(?:(?:\d+|AT_FDCWD)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
OF_DESCRIPTORS = ("write", "pwrite64", "writev", "ftruncate", "fallocate", "sendfile", "fsync", "fdatasync", "fchmod")
WRITES = ("write", "pwrite64", "writev", "ftruncate", "truncate", "fallocate", "sendfile", "copy_file_range")
SYNCS = ("fsync", "fdatasync")
RENAMES = ("rename", "renameat", "renameat2")
REMOVES = ("unlink", "unlinkat", "rmdir")
MAKES = ("mkdir", "mkdirat")
OPENS = ("open", "openat", "creat")
TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
# tells of now, and is not synced: after a power failure there is no now to tell of
MESSAGES = ("status.json",)


def plain(name: str, pid: int) -> str:
    """A name without the numbers that differ from run to run: process id, thread id."""
    return re.sub(r"\d{12,}", "THREAD", re.sub(rf"(?<!\d){pid}(?!\d)", "PID", name))


@dataclass(frozen=True)
class Call:
    """One call. `path` is relative to the world (None: elsewhere), `target` what it is renamed to."""

    name: str
    path: str | None
    target: str | None = None
    is_change: bool = True  # or a sync; False: opened to be read, or refused by the system
    makes: bool = False  # a name that may be new


def read_trace(lines: Sequence[str], world: Path, pid: int) -> list[Call]:
    """The calls in order; a process id in a name is written as PID."""
    return [read_call(match[1], match[2], world, pid) for line in lines if (match := LINE.match(line))]


def read_call(name: str, rest: str, world: Path, pid: int) -> Call:
    def place(folder: str, path: str = "") -> str | None:
        whole = (PurePosixPath(folder or world) / path) if path else PurePosixPath(folder)
        if not whole.is_relative_to(world):
            return None
        if whole == PurePosixPath(world):
            return ""
        return plain(str(whole.relative_to(world)), pid)

    arguments, result = ENDING.match(rest).groups() if ENDING.match(rest) else (rest, "")  # of a call that killed: no result
    is_done = not result.startswith("-1")
    if name in OF_DESCRIPTORS or name == "copy_file_range":
        found = DESCRIPTOR.findall(arguments)
        path = found[-1 if name == "copy_file_range" else 0].removesuffix(" (deleted)") if found else ""
        return Call(name, place(path), is_change=is_done)
    names = [place(folder, path) for folder, path in NAME.findall(arguments)]
    is_change = is_done and (name not in OPENS or bool(TO_WRITE.search(rest)))
    return Call(name, names[0] if names else None, names[1] if len(names) > 1 else None, is_change, "O_CREAT" in rest)


def points(calls: Sequence[Call]) -> list[tuple[Call, int]]:
    """The calls that change or sync a file of the world, each with its number among those of its name."""
    seen: Counter[str] = Counter()
    found = []
    for call in calls:
        seen[call.name] += 1
        if call.is_change and call.path is not None:
            found.append((call, seen[call.name]))
    return found


# -- power failures ----------------------------------------------------------------------------------------------------------


def power_problems(calls: Sequence[Call]) -> list[str]:
    """Where a power failure could leave a name without its bytes; [] if nowhere.

    Before a manifest gets its name, and before a commit's folder does: every file in the folder is synced after its last
    write, and the folder after its last new name. Before a commit is removed, and at the end: all new names are synced.
    """
    disk, problems = Disk(), []
    for call in calls:
        if call.is_change and call.path is not None:
            problems += disk.after(call)
    return problems + disk.pending("the end", "")


class Disk:
    """What has been written and named, and not been synced."""

    def __init__(self) -> None:
        self.unwritten: set[str] = set()  # files
        self.unnamed: dict[str, set[str]] = {}  # folder -> names in it

    def after(self, call: Call) -> list[str]:
        problems: list[str] = []
        assert call.path is not None
        if call.name in SYNCS:
            self.unwritten.discard(call.path)
            self.unnamed.pop(call.path, None)
        elif call.name in WRITES:
            self.unwritten.add(call.path)
        elif call.name in MAKES or (call.name in OPENS and call.makes):
            self.name(call.path)
        elif call.name in REMOVES:
            if call.path.endswith(f"/{MANIFEST}") and "step_" in call.path:
                problems = self.pending(f"{call.path} is removed", folder(folder(call.path)), is_deep=False)
            self.forget(call.path)
        elif call.name in RENAMES and call.target is not None:
            is_folder = (
                any(path.startswith(f"{call.path}/") for path in [*self.unwritten, *self.unnamed])
                or "." not in base(call.path)[1:]
            )
            if is_folder or call.target.endswith(MANIFEST):
                problems = self.pending(f"{call.target} has its name", call.path if is_folder else folder(call.path))
            if call.path in self.unwritten and base(call.target) not in MESSAGES:
                problems.append(f"{call.path} is not synced before it becomes {call.target}")
            self.move(call.path, call.target)
        return problems

    def pending(self, when: str, place: str, *, is_deep: bool = True) -> list[str]:
        """What is not synced in a folder, and in those within it."""
        inside = place and f"{place}/"
        files = {path for path in self.unwritten if path.startswith(inside)} if is_deep else set()
        names = (
            {
                f"{where}/{name}"
                for where, names in self.unnamed.items()
                for name in names
                if f"{where}/".startswith(inside) or where == place
            }
            if is_deep
            else {f"{place}/{name}" for name in self.unnamed.get(place, ())}
        )
        shown = sorted(path for path in files | names if not base(path).startswith(".") and base(path) not in MESSAGES)
        return [f"{path} is not synced before {when}" for path in shown]

    def name(self, path: str) -> None:
        self.unnamed.setdefault(folder(path), set()).add(base(path))

    def forget(self, path: str) -> None:
        self.unwritten.discard(path)
        self.unnamed.get(folder(path), set()).discard(base(path))

    def move(self, path: str, target: str) -> None:
        self.forget(path)
        self.unwritten = {renamed(other, path, target) for other in self.unwritten}
        self.unnamed = {renamed(other, path, target): names for other, names in self.unnamed.items()}
        self.name(target)


def renamed(other: str, path: str, target: str) -> str:
    return target + other[len(path) :] if other == path or other.startswith(f"{path}/") else other


def folder(path: str) -> str:
    return path.rpartition("/")[0]


def base(path: str) -> str:
    return path.rpartition("/")[2]
