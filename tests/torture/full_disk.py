"""A disk that is really full: a tmpfs of a few hundred kilobytes, or of a few files, in a mount namespace of one's own.

    unshare -rm python -m torture.full_disk FOLDER        # prints what each trial came to, as JSON; FOLDER is mounted over

A stage program and a training run while a filler leaves so and so much room. They end with exit 1 and say so, or they had room
enough; then the filler is removed, and the next attempt ends in the bytes of a run that had all the room it wanted.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torture.crash_points import ABSENT, State, look, why_wrong
from torture.publish_paths import HERE, PublishPath, publish_paths
from torture.zygote import TESTS, TIMEOUT_S, Job, Zygote

SIZE, FILES = 4 << 20, 200
PAGE = 4096
PATHS = ("tokens of text, over another", "training")


@dataclass(frozen=True)
class Trial:
    """`room`: bytes, or files, that were left. `problem`: what went wrong; None if nothing."""

    path: str
    unit: str
    room: int
    was_full: bool
    problem: str | None


def run_in_namespace(folder: Path, *, rooms: int) -> list[Trial] | str:
    """The trials, `rooms` to a path and unit, from no room at all to enough; a sentence if no disk can be mounted here."""
    if not shutil.which("unshare"):
        return "unshare is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True).returncode:
        return "this machine lets nobody mount a disk in a namespace"
    command = ["unshare", "-rm", sys.executable, "-m", "torture.full_disk", str(folder), str(rooms)]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S * 10)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [Trial(**found) for found in json.loads(done.stdout)]


def main() -> None:
    disk, rooms = Path(sys.argv[1]), int(sys.argv[2])
    workplace = disk.with_name(f"{disk.name}.zygote")
    found = []
    with Zygote(workplace) as zygote:
        for path in publish_paths("nowhere"):
            if path.name in PATHS:
                for unit, fill in (("bytes", fill_bytes), ("files", fill_files)):
                    fresh = replace(path, before=())  # what is replaced makes room
                    found += [asdict(trial) for trial in try_rooms(fresh, zygote, disk, unit, fill, rooms)]
    print(json.dumps(found))


def try_rooms(
    path: PublishPath, zygote: Zygote, disk: Path, unit: str, fill: Callable[[Path, int], None], rooms: int
) -> list[Trial]:
    mount(disk)
    try:
        world = disk / "world"
        made = prepare(path, zygote, world, disk)
        before = room(disk)
        require(zygote, path.job, world)
        wanted, after = look(world), room(disk)
        used = before[unit] - after[unit] + (3 * PAGE if unit == "bytes" else 3)  # and what it needs in between
        steps = sorted({used * number // max(1, rooms - 1) for number in range(rooms)})
        return [try_room(path, zygote, world, made, wanted, unit, left, fill) for left in steps]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def try_room(
    path: PublishPath,
    zygote: Zygote,
    world: Path,
    made: Path,
    wanted: State,
    unit: str,
    left: int,
    fill: Callable[[Path, int], None],
) -> Trial:
    shutil.rmtree(world)
    shutil.copytree(made, world)
    old = look(world)
    fill(world.parent / "filler", left)
    ended = zygote.run(path.job, world)
    shutil.rmtree(world.parent / "filler")
    problem = why_wrong(ended, "ENOSPC")
    seen = look(world).manifests
    for name, identity in seen.items():
        if name in wanted.manifests and identity not in (wanted.manifests[name], old.manifests.get(name, ABSENT)):
            problem = problem or f"{name} is {identity}"
    again = zygote.run(path.job, world)
    if again.code:
        problem = problem or f"the next attempt ended with {again.code}: {again.said[-300:]}"
    elif look(world) != wanted:
        problem = problem or "the next attempt did not end as one that had all the room"
    return Trial(path.name, unit, left, ended.code == 1, problem and f"{path.name}, {left} {unit} left: {problem}")


def prepare(path: PublishPath, zygote: Zygote, world: Path, disk: Path) -> Path:
    """The old state, in `world`, and a copy of it beside the disk."""
    world.mkdir()
    for job in (Job(f"{HERE}:make_world"), *path.before):
        require(zygote, job, world)
    made = disk.with_name(f"{disk.name}.made")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(world, made)
    return made


def require(zygote: Zygote, job: Job, world: Path) -> None:
    ended = zygote.run(job, world)
    if ended.code:
        raise RuntimeError(f"{job.program}: {ended.said}")


def mount(disk: Path) -> None:
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={FILES}", "none", str(disk)], check=True)


def room(disk: Path) -> dict[str, int]:
    left = os.statvfs(disk)
    return {"bytes": left.f_bavail * left.f_frsize, "files": left.f_favail}


def fill_bytes(filler: Path, left: int) -> None:
    filler.mkdir()
    size = room(filler)["bytes"] - left
    with open(filler / "bytes", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size - size % PAGE))


def fill_files(filler: Path, left: int) -> None:
    filler.mkdir()
    for number in range(max(0, room(filler)["files"] - left)):
        (filler / str(number)).touch()


if __name__ == "__main__":
    main()
