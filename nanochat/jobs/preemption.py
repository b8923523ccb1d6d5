"""Look after the jobs that Snakemake waits for, where SLURM does something with them that its plugin (2.8) does not see.

Ended by SLURM   so that others could run, or with a node that failed. The plugin takes PREEMPTED for a pause, and NODE_FAIL too
                 under --slurm-requeue: it waits until SLURM runs the job again. Where a partition or QOS cancels what it
                 preempts, SLURM never does. Such a job is requeued: same number, and the stage goes on from its commit.
Held             after a failed launch, or by an administrator. It waits until somebody lets it go; a line says so.
Vanished         without its end being seen: squeue did not answer for longer than SLURM remembers, or slurmctld lost its
                 state. The plugin would wait for ever.

No clock is read, as that of SLURM's machine may differ: what is there at the first answer, asked for before anything is
submitted, belongs to a Snakemake that is no more. Nobody waits for it, and the stage may have a new job already.
"""

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat.jobs import slurm

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LOOKS = 30.0
ENDED_BY_SLURM = {"PREEMPTED", "NODE_FAIL"}
SEEN_BY_SNAKEMAKE = slurm.ENDED - ENDED_BY_SLURM
FIELDS = "%i|%T|%r|%j|%k|%Z"  # id, state, reason, name, comment, folder
NAME = re.compile(r"(.*_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # the plugin's: one for all jobs of a Snakemake


@dataclass(frozen=True)
class Job:
    id: str
    state: str
    reason: str
    comment: str  # rule and wildcards

    def __str__(self) -> str:
        return f"SLURM job {self.id} ({self.comment})"


def watch(folder: Path, *, seconds: float = SECONDS_BETWEEN_LOOKS, give_up: Callable[[str], None]) -> threading.Event:
    """Look after the jobs that are submitted from `folder` from now on, until the returned event is set or this process ends.

    `give_up` is called once, with a sentence, when somebody waits for a job in vain.
    """
    jobs, ended = Jobs(folder, seconds), threading.Event()
    jobs.look()
    if jobs.older is None:
        log.warning("squeue does not answer; jobs that are submitted before it does are not looked after")

    def look() -> None:
        while not ended.wait(seconds):
            if problem := jobs.look():
                return give_up(problem)

    threading.Thread(target=look, name="preemption", daemon=True).start()
    return ended


class Jobs:
    """The jobs that this Snakemake has submitted, as far as squeue has told."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds = folder, seconds
        self.older: set[str] | None = None
        self.awaited: dict[str, Job] = {}  # seen, and not at an end that Snakemake sees as well
        self.missing: set[str] = set()  # of these, in the last answer
        self.refused: set[str] = set()  # in the last answer, and SLURM would not requeue them
        self.warned: set[str] = set()

    def look(self) -> str | None:
        """Ask once, and act on the answer. Returns why it is vain to wait on, if it is."""
        found = jobs_of(self.folder)
        if found is None:
            return None
        if self.older is None:
            self.older = {job.id for job in found}
        mine = [job for job in found if job.id not in self.older]
        self.warn_of_held(mine)
        return self.take_back(mine) or self.find_vanished(mine)

    def warn_of_held(self, mine: list[Job]) -> None:
        for job in mine:
            if "held" in job.reason.lower() and job.id not in self.warned:
                self.warned.add(job.id)
                log.warning(f"{job} is held ({job.reason}) and will wait until somebody runs: scontrol release {job.id}")

    def take_back(self, mine: list[Job]) -> str | None:
        """Requeue what SLURM ended. Only what it refuses twice is hopeless: the first time it may be on its way back."""
        refused = set()
        for job in mine:
            if job.state not in ENDED_BY_SLURM:
                continue
            reason = slurm.requeue(job.id)
            if reason is None:
                log.warning(f"{job} was ended by SLURM ({job.state}) and is back in the queue")
            elif slurm.is_definite(reason):
                if job.id in self.refused:
                    return f"{job} was ended by SLURM ({job.state}), which does not take it back: {reason}"
                refused.add(job.id)
        self.refused = refused
        return None

    def find_vanished(self, mine: list[Job]) -> str | None:
        """Why it is vain to wait, if a job is missing in two answers in a row and Snakemake cannot know how it ended."""
        missing = self.awaited.keys() - {job.id for job in mine}
        for job in mine:
            if job.state in SEEN_BY_SNAKEMAKE:
                self.awaited.pop(job.id, None)
            else:
                self.awaited[job.id] = job
        vanished = sorted(missing & self.missing)
        self.missing = missing
        if not vanished or self.leave_unseen():
            return None
        return f"{self.awaited[vanished[0]]} vanished from the queue, and how it ended is not known"

    def leave_unseen(self) -> bool:
        """Whether jobs leave the queue between two looks as a rule. The plugin asks sacct there (MinJobAge below 45 s)."""
        return 0 < slurm.min_job_age() < 2 * self.seconds


def jobs_of(folder: Path) -> list[Job] | None:
    """This person's jobs that a Snakemake submitted from `folder`, in all states; None if SLURM does not answer."""
    answer = slurm.ask("squeue", "-h", "--me", "--array", "--states=all", "-o", FIELDS)
    if answer is None:
        return None
    found = []
    for line in answer.splitlines():
        job, state, reason, name, comment, place = (line.split("|") + [""] * 6)[:6]
        if Path(place) == folder and NAME.fullmatch(name):
            found.append(Job(job, state, reason, comment))
    return found
