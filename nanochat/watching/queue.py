"""Ask SLURM's queue which jobs of this project wait or run, and where they stand. Only looks, and never waits long.

The SLURM plugin of Snakemake names all jobs alike and writes what they do into the comment: `rule_base_train_wildcards_d20`.
"""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.jobs.slurm import parse_duration

TIMEOUT_S = 5.0
FIELDS = "%i|%T|%r|%S|%L|%P|%N|%Z|%k"  # the comment last: it may hold anything


@dataclass(frozen=True)
class Job:
    """One job of the queue."""

    id: str
    state: str  # SLURM's word: PENDING, RUNNING, COMPLETING ...
    reason: str = ""  # why it waits
    start: str | None = None  # when it began or is expected to; the cluster's local time
    seconds_left: float | None = None  # of its walltime
    partition: str = ""
    nodes: str = ""
    folder: str = ""  # where it was submitted
    comment: str = ""
    position: int | None = None  # 1 = the next of those that wait in its partition
    num_waiting: int | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state == "PENDING"


@dataclass(frozen=True)
class Queue:
    """What squeue said; `problem` tells why it said nothing."""

    jobs: Sequence[Job] = field(default_factory=tuple)
    problem: str | None = None

    def job(self, id: str | None) -> Job | None:
        return next((job for job in self.jobs if job.id == id), None)


def read_queue(folder: Path, *, timeout_s: float = TIMEOUT_S) -> Queue:
    """This person's jobs that were submitted from `folder`. Where there is no SLURM, or it does not answer, no jobs."""
    lines, problem = ask("--me", "-o", FIELDS, timeout_s=timeout_s)
    jobs = [job for line in lines if (job := parse(line)) and same_folder(job.folder, folder)]
    partitions = {job.partition for job in jobs if job.is_waiting}
    if partitions:
        waiting, _ = ask("-t", "PENDING", "-p", ",".join(sorted(partitions)), "--sort=-p", "-o", "%i|%P", timeout_s=timeout_s)
        jobs = with_positions(jobs, waiting)
    return Queue(tuple(jobs), problem)


def ask(*words: str, timeout_s: float) -> tuple[list[str], str | None]:
    """The lines of squeue's answer, and what went wrong, if anything did."""
    try:
        process = subprocess.Popen(
            ("squeue", "-h", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of it can be ended, a wrapper script's children included
        )
    except OSError:
        return [], "squeue is not installed here"
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return [], f"squeue did not answer within {timeout_s:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        words_of_it = errors.strip().splitlines()
        return [], f"squeue failed: {words_of_it[0] if words_of_it else f'exit code {process.returncode}'}"
    return output.splitlines(), None


def parse(line: str) -> Job | None:
    """A line in the format FIELDS; None for any other."""
    words = [word.strip() for word in line.split("|", FIELDS.count("|"))]
    if len(words) != FIELDS.count("|") + 1:
        return None
    id_, state, reason, start, left, partition, nodes, folder, comment = words
    seconds_left = parse_duration(left)
    return Job(
        id=id_,
        state=state,
        reason="" if reason == "None" else reason,
        start=None if start in ("N/A", "") else start,
        seconds_left=None if seconds_left == float("inf") else seconds_left,
        partition=partition,
        nodes=nodes,
        folder=folder,
        comment=comment,
    )


def with_positions(jobs: list[Job], waiting: list[str]) -> list[Job]:
    """The same jobs with their positions among `waiting`, lines `id|partition` with the next to start first."""
    count: Counter[str] = Counter()
    position = {}
    for line in waiting:
        id_, _, partition = line.partition("|")
        count[partition] += 1
        position[id_] = count[partition]
    return [
        replace(job, position=position[job.id], num_waiting=count[job.partition]) if job.id in position else job for job in jobs
    ]


def same_folder(one: str, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
