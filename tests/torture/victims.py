"""Whom to kill, and when: the processes of a world by what they are, and the moments of a stage as its folder shows them.

    driver      Snakemake
    launcher    workflow/scripts/launch.py of a stage
    rank        a stage program, or one of its ranks
    tree        all of it at once

Reads /proc (Linux). A process belongs to a world if it works in its folder, wherever its parents are by now.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat.jobs.attempt import newest_claim
from nanochat.jobs.processes import PROC, command, is_alive, start_time
from nanochat.manifest import read_json_object
from torture.world import DOWNLOAD, RUN, TRAININGS, World

TARGETS = ("rank", "tree", "driver", "launcher")
PROGRAMS = "workflow/scripts/"
LAUNCHER = PROGRAMS + "launch.py"
NOT_YET = ("nanochat.jobs.torchrun", "nanochat.jobs.offline")  # these start the program


@dataclass(frozen=True)
class Process:
    """A process of a world: its number and start time name it for good."""

    pid: int
    started: int
    kind: str  # launcher, rank, other (torchrun, a shell)
    stage: str

    @property
    def is_alive(self) -> bool:
        return is_alive(self.pid, self.started)

    def kill(self) -> None:
        if self.is_alive:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


def processes(folder: Path) -> list[Process]:
    """All processes that work in a folder, the youngest last."""
    found = [describe(int(name)) for name in os.listdir(PROC) if name.isdecimal() and works_in(name, folder.resolve())]
    return sorted((process for process in found if process), key=lambda process: (process.started, process.pid))


def works_in(pid: str, folder: Path) -> bool:
    try:
        return os.readlink(PROC / pid / "cwd") == str(folder)
    except OSError:
        return False


def describe(pid: int) -> Process | None:
    started, words = start_time(pid), command(pid)
    if started is None:
        return None
    program = next((word for word in words if word.startswith(PROGRAMS)), "")
    if program == LAUNCHER:
        return Process(pid, started, "launcher", after(words, "--state").removeprefix(f"{RUN}/resume/"))
    stage = stage_of(after(words, "--manifest")) if program else ""
    return Process(pid, started, "rank" if stage and not any(word in words for word in NOT_YET) else "other", stage)


def stage_of(manifest: str) -> str:
    """ "" where there is none: the report of an unfinished run."""
    return (
        manifest.removeprefix(f"{RUN}/").removesuffix("/manifest.json") if manifest.startswith(RUN) else manifest and DOWNLOAD
    )


def after(words: list[str], option: str) -> str:
    """The value of an option; "" where it is not given."""
    return words[words.index(option) + 1] if option in words[:-1] else ""


def kill_tree(folder: Path) -> None:
    """Kill everything at once, as when a machine goes down; again until nothing is left that one of them just started."""
    end = time.monotonic() + 10
    while (found := processes(folder)) and time.monotonic() < end:
        for process in found:
            process.kill()
        time.sleep(0.01)


# -- moments -----------------------------------------------------------------------------------------------------------------

RUNNING = "running"  # from its launcher's start on
STEPPING = "stepping"
COMMITTING = "committing"
EVALUATING = "evaluating"
PUBLISHING = "publishing"
STARTING = "driver starts"


def phases(stage: str) -> tuple[str, ...]:
    """What can be seen of a stage from outside."""
    if stage in TRAININGS:
        return (RUNNING, STEPPING, COMMITTING, EVALUATING, PUBLISHING)
    if "eval" in stage:
        return (RUNNING, EVALUATING, PUBLISHING)
    return (RUNNING, PUBLISHING)


def is_in(world: World, stage: str, phase: str) -> Callable[[], bool]:
    """A question that takes microseconds: is this stage, which runs, in this phase now?"""
    state, folder = world.state(stage), world.folder / RUN / stage
    if stage == DOWNLOAD:
        downloads = world.folder / "resources" / "tiny_world"
        folders = [downloads, *(downloads / name for name in ("smoltalk", "arc_easy", "gsm8k"))]
        return lambda: any(holds(folder, ".", ".tmp-") for folder in folders)
    if phase == STEPPING:
        return lambda: says(state) == "running"
    if phase == COMMITTING:
        return lambda: holds(state, ".step_", ".tmp-")
    if phase == EVALUATING and stage in TRAININGS:
        return lambda: says(state) == "evaluating"
    if phase == EVALUATING:
        return lambda: holds(state, "part_", ".json") or holds(state, ".part_", ".tmp-")
    if phase == PUBLISHING:
        return lambda: holds(folder, ".", ".tmp-") and not (folder / "manifest.json").exists()
    return lambda: True


def holds(folder: Path, begin: str, middle: str) -> bool:
    try:
        return any(name.startswith(begin) and middle in name for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def says(state: Path) -> str:
    """What the program that works on a stage last said of itself."""
    status = read_json_object(state / "status.json")
    return status.get("state", "") if status.get("claim") == newest_claim(state) else "starting"


def kept(state: Path) -> int:
    """The newest commit's step, or the number of finished tasks."""
    try:
        names = os.listdir(state)
    except FileNotFoundError:
        return 0
    parts = sum(name.startswith("part_") for name in names)
    return max([parts, *(int(name[5:]) for name in names if name.startswith("step_"))])
