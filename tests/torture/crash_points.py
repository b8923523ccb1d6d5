"""Every publish path, killed before each of its system calls, and refused each of its writes: S1 and S7 of the scoreboard.

A path (`torture.publish_paths`) is run once under strace; each call that changes or syncs a file is a point. For each point
the path starts from a fresh copy of the old state and is killed there, or the call fails with ENOSPC, EDQUOT, EIO. Then

    what readers see    every manifest, and every file under its final name, is the old one, the new one, or not there; no
                        manifest names what is not so; a newest commit is there
    the message         after an error: exit 1, a few lines, the file, for a full disk the bytes needed and free
    the next attempt    undisturbed, it ends in the bytes and the file names of a run that was never disturbed

And from the trace of the undisturbed run, for a power failure: what a manifest names is synced before its name is, and both
before the manifest.

Covered: the death of a process, whose written bytes the kernel keeps. Not covered: the order in which a disk that lost power
has written what nobody had synced; writes of threads and child processes (the work is done in the main thread).
"""

import math
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, RECORD, open_verified, sha256
from torture.board import Row, Say, row
from torture.publish_paths import HERE, PublishPath, publish_paths
from torture.served import served
from torture.trace import OPENS, WRITES, Call, plain, points, power_problems, read_trace
from torture.zygote import Ended, Job, Zygote, why_no_tracing

PART = "crash points"
KILL = "KILL"
ERRORS = ("ENOSPC", "EDQUOT", "EIO")
FAILING = {*WRITES, *OPENS, "fsync", "fdatasync", "rename", "renameat", "renameat2", "mkdir", "mkdirat"} - {"truncate"}
TRIES = 3  # a count shifts where bytes come from a network in other pieces
ABSENT, DAMAGED, WHOLE = "absent", "damaged", "whole"
# what tells of times, and so differs from run to run
VOLATILE = re.compile(rf"(.*{RECORD}|resume/.*/status\.json|resume/base_train/step_\d+/(state|manifest)\.json)$")
APPENDED = ("resources/remote.lock.jsonl",)  # a line at a time; a torn one is passed over
COMMIT = re.compile(r"resume/base_train/step_\d+/manifest\.json$")


@dataclass(frozen=True)
class Point:
    """A call of a path: the n-th of its name. `call` is what it did when nobody disturbed it."""

    call: Call
    number: int

    def __str__(self) -> str:
        target = f" -> {self.call.target}" if self.call.target else ""
        return f"{self.call.name} {self.number} ({self.call.path}{target})"


@dataclass(frozen=True)
class State:
    """What readers see (manifest -> its identity, or what is wrong), the newest whole commit, and all files by their bytes."""

    manifests: dict[str, str]
    commit: str | None
    files: dict[str, str]


def look(world: Path, pid: int = 0) -> State:
    """The state of a world, its inputs aside. A process id in a name is written as PID."""
    paths = [path for path in world.rglob("*") if not path.is_dir() and path.relative_to(world).parts[0] != "inputs"]
    files = {plain(str(path.relative_to(world)), pid): path for path in sorted(paths)}
    manifests = {name: reading(path) for name, path in files.items() if name.endswith(MANIFEST) and "/." not in name}
    commits = [name for name, found in manifests.items() if COMMIT.match(name) and found != DAMAGED]
    contents = {name: "" if VOLATILE.match(name) else sha256(path) for name, path in files.items()}
    return State(manifests, max(commits, default=None), contents)


def reading(manifest: Path) -> str:
    """The identity of what a manifest names, if all of it is whole. Commits tell of times, and are whole or not."""
    try:
        artefact = open_verified(manifest)
        for name in artefact.files:
            artefact.path(name)
    except UserError:
        return DAMAGED
    return WHOLE if COMMIT.search(str(manifest)) else artefact.identity


class Trials:
    """The trials of one path: its world before, the state after an undisturbed run, and the points in between."""

    def __init__(self, path: PublishPath, world: Path, zygote: Zygote, folder: Path, *, is_control: bool = False):
        self.path, self.zygote = path, zygote
        self.before, self.world = folder / "before", folder / "world"
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.copytree(world, self.before)
        for job in path.before:
            ended = zygote.run(job, self.before)
            if ended.code:
                raise RuntimeError(f"{path.name}: {job.program} cannot make the old state: {ended.said}")
        self.old = look(self.before)
        self.recovered: dict[tuple, str | None] = {}
        self.num_recovered, self.shifted = 0, []
        for is_traced in (False, True):  # the first may work out what the others remember
            self.restore()
            ended = zygote.run(path.job, self.world, is_traced=is_traced)
        if ended.code:
            raise RuntimeError(f"{path.name}: fails undisturbed: {ended.said}")
        self.calls = read_trace(ended.lines, self.world, ended.pid)
        self.new = look(self.world)
        self.is_control = is_control

    def restore(self) -> None:
        shutil.rmtree(self.world, ignore_errors=True)
        shutil.copytree(self.before, self.world)

    @cached_property
    def points(self) -> list[Point]:
        return [Point(call, number) for call, number in points(self.calls)]

    @cached_property
    def failing_points(self) -> list[Point]:
        return [point for point in self.points if point.call.name in FAILING]

    def kill(self, point: Point) -> str | None:
        """What went wrong when the path was killed before this call; None if nothing."""
        ended = self.disturb(point, f"{point.call.name}:signal=SIGKILL:when={point.number}")
        problem = None if ended.code == 137 else f"was not killed, but ended with {ended.code}: {ended.said[-300:]}"
        return self.told(point, KILL, problem or self.problem(ended))

    def fail(self, point: Point, error: str) -> str | None:
        """What went wrong when this call failed."""
        ended = self.disturb(point, f"{point.call.name}:error={error}:when={point.number}")
        return self.told(point, error, why_wrong(ended, error) or self.problem(ended))

    def disturb(self, point: Point, inject: str) -> Ended:
        for _ in range(TRIES):
            self.restore()
            ended = self.zygote.run(self.path.job, self.world, inject=inject)
            if reached(read_trace(ended.lines, self.world, ended.pid), point):
                return ended
        self.shifted.append(str(point))  # another call than was meant; what it left is looked at all the same
        return ended

    def told(self, point: Point, how: str, problem: str | None) -> str | None:
        return problem and f"{self.path.name}, {how} at {point}: {problem}"

    def problem(self, ended: Ended) -> str | None:
        """What is wrong with the state that was left, or with the attempt after it."""
        state = look(self.world, ended.pid)
        if problem := self.misread(state):
            return problem
        if ended.code == 0 and state != self.new:
            return f"said that it is done, and left {difference(state, self.new)}"
        key = (tuple(sorted(state.manifests.items())), tuple(sorted(state.files.items())))
        if key not in self.recovered:  # what the next attempt does follows from the state that it finds
            self.recovered[key] = None if self.is_control else self.recover()
            self.num_recovered += 1
        return self.recovered[key]

    def misread(self, state: State) -> str | None:
        for name in self.old.manifests.keys() | self.new.manifests.keys() | state.manifests.keys():
            found, old, new = (seen.manifests.get(name, ABSENT) for seen in (state, self.old, self.new))
            if found not in (old, new, ABSENT):
                return f"{name} is {found}; it was {old}, and is to be {new}"
        for name in (self.old.files.keys() | self.new.files.keys()) & state.files.keys():
            if name not in APPENDED and state.files[name] not in (self.old.files.get(name), self.new.files.get(name)):
                return f"{name} is neither as it was nor as it is to be"
        if self.path.has_commits and state.commit not in (self.old.commit, self.new.commit):
            return f"the newest commit is {state.commit}; it was {self.old.commit}, and is to be {self.new.commit}"
        return None

    def recover(self) -> str | None:
        ended = self.zygote.run(self.path.job, self.world)
        if ended.code:
            return f"the next attempt ended with {ended.code}: {ended.said[-500:]}"
        state = look(self.world)
        return f"the next attempt left {difference(state, self.new)}" if state != self.new else None


def reached(calls: list[Call], point: Point) -> bool:
    """Whether the call that was disturbed is the one that was meant."""
    of_name = [call for call in calls if call.name == point.call.name]
    return len(of_name) >= point.number and of_name[point.number - 1].path == point.call.path


def difference(found: State, wanted: State) -> str:
    names = found.files.keys() | wanted.files.keys()
    words = []
    for name in sorted(names):
        here, there = found.files.get(name), wanted.files.get(name)
        if here != there:
            words.append(f"{name} {'is missing' if here is None else 'is too much' if there is None else 'differs'}")
    return "; ".join(words) or "other manifests"


NEEDED = re.compile(r"Needed: (at least )?[\d,]+ byte")
SAYS = {
    "ENOSPC": [re.compile("disk is full"), NEEDED, re.compile(r"Free: [\d,]+ bytes")],
    "EDQUOT": [re.compile("quota"), NEEDED],
    "EIO": [re.compile("input/output error", re.I)],
}
MOST_LINES = 6


def why_wrong(ended: Ended, error: str) -> str | None:
    """What is wrong with how a program ended whose write failed. It may do without the file, if it ends in the same bytes."""
    if ended.code == 0:
        return None
    if ended.code != 1:
        return f"ended with {ended.code}: {ended.said[-500:]}"
    text = ended.said[ended.said.rfind("error: ") :]
    if "Traceback" in ended.said or "error: " not in ended.said or text.count("\n") > MOST_LINES:
        return f"no message of a few lines: {ended.said[-500:]}"
    missing = [pattern.pattern for pattern in SAYS[error] if not pattern.search(text)]
    if missing or not re.search(r"error: [^ ]*(out|resume|resources)/", text):
        return f"the message does not tell {missing or 'the file'}: {text}"
    return None


# -- rows --------------------------------------------------------------------------------------------------------------------


@contextmanager
def workshop(folder: Path) -> Iterator[tuple[Zygote, Path, str]]:
    """A zygote, the small world, and the address of a file on a web server."""
    with Zygote(folder / "zygote") as zygote, served() as address:
        world = folder / "small_world"
        world.mkdir()
        ended = zygote.run(Job(f"{HERE}:make_world"), world)
        if ended.code:
            raise RuntimeError(f"the small world cannot be made: {ended.said}")
        yield zygote, world, address


def sampled(found: list[Point], share: float, rng: random.Random) -> list[Point]:
    return found if share >= 1 else rng.sample(found, math.ceil(len(found) * share))


def try_path(
    path: PublishPath,
    zygote: Zygote,
    world: Path,
    folder: Path,
    *,
    kills: float = 1.0,
    errors: float = 1.0,
    seed: int = 0,
    say: Say = print,
) -> dict:
    """All trials of a path, or so great a share of its kills and errors: failures by kind, and what was counted."""
    began, rng = time.monotonic(), random.Random(f"{seed} {path.name}")
    trials = Trials(path, world, zygote, folder)
    killed = [trials.kill(point) for point in sampled(trials.points, kills, rng)]
    failed = [
        trials.fail(point, error)
        for point in sampled(trials.failing_points, errors, rng)
        for error in (ERRORS if errors >= 1 else rng.sample(ERRORS, 1))
    ]
    power = [f"{path.name}: {problem}" for problem in power_problems(trials.calls)] or [None]
    counts = {"points": len(trials.points), "shifted": len(trials.shifted), "next_attempts": trials.num_recovered}
    seconds = round(time.monotonic() - began, 1)
    say(f"{path.name}: {len(killed)} kills, {len(failed)} errors, {seconds} s, {counts}")
    return {"kills": killed, "errors": failed, "power": power, "counts": {**counts, "seconds": seconds}}


KILLED = "every system call of every publish path, killed there: old or new state, and the next attempt ends in the same bytes"
FAILED = "every write, sync, opening and renaming fails (full, over quota, broken): clean stop in words, and the same"
POWER = "what a manifest names is synced before the manifest has its name"
FULL = "a disk that is really full, of bytes or of files: told so, and with room again the same bits"
CONTROL = "files written under their final names, killed at every call of publishing and committing"


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    """All points of all paths, whatever the size: there is nothing to draw."""
    if reason := why_no_tracing(folder):
        say(f"{PART}: not tried, {reason}")
        return []
    with workshop(folder) as (zygote, world, address):
        paths = publish_paths(address)
        found = {path.name: try_path(path, zygote, world, folder, seed=seed, say=say) for path in paths}
        controls = {path.name: try_control(path, zygote, world, folder, say=say) for path in controlled(paths)}
    counts = {name: result["counts"] for name, result in found.items()}
    return [
        row(PART, KILLED, [trial for result in found.values() for trial in result["kills"]], paths=counts),
        row(PART, FAILED, [trial for result in found.values() for trial in result["errors"]], errors=list(ERRORS)),
        row(PART, POWER, [trial for result in found.values() for trial in result["power"]]),
        *full_disk_rows(size, folder=folder, say=say),
        row(PART, CONTROL, [trial for trials in controls.values() for trial in trials], is_control=True),
    ]


def full_disk_rows(size: int, *, folder: Path, say: Say) -> list[Row]:
    from torture import full_disk  # which imports this

    found = full_disk.run_in_namespace(folder / "disk", rooms=max(2, size // 10))
    if isinstance(found, str):
        say(f"{PART}: a full disk is not tried, {found}")
        return []
    num_full = sum(trial.was_full for trial in found)
    say(f"a full disk: {len(found)} trials, {num_full} of them without room enough")
    return [row(PART, FULL, [trial.problem for trial in found], num_without_room=num_full)]


def controlled(paths: list[PublishPath]) -> list[PublishPath]:
    """Those that write files and commits of their own, and have something to lose."""
    return [path for path in paths if path.name in ("publish over another", "commit, removing the oldest")]


def try_control(path: PublishPath, zygote: Zygote, world: Path, folder: Path, *, say: Say = print) -> list[str | None]:
    """The same trials of a path that writes in place: what readers see must be wrong at some points."""
    direct = replace(path, job=replace(path.job, is_direct=True))
    trials = Trials(direct, world, zygote, folder, is_control=True)
    found = [trials.kill(point) for point in trials.points]
    say(f"{path.name}, written in place: {sum(problem is not None for problem in found)} of {len(found)} points are broken")
    return found
