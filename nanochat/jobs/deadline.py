"""When a stage must stop so that its commit is on disk before the wall.

    |<------------------------ time limit ------------------------->|
    start ........................... ask ......... give up ... wall
                                       |<-------- margin --------->|

Asked to stop, a program finishes its step or evaluation, commits and exits. The margin follows what these took so far.
"""

import os
import time
from dataclasses import dataclass

from nanochat.errors import UserError
from nanochat.jobs import slurm

SECONDS_OF_MARGIN = (20.0, 300.0)
SHARE_OF_MARGIN = 0.05
GUESS = "the resource runtime, as squeue did not answer"
COMMITS_IN_MARGIN = 3  # a busy file system writes a commit three times as slowly as before, and it still is in time


@dataclass
class Deadline:
    """The wall of this attempt. Times are those of `time.monotonic`; no clock is compared with another machine's."""

    wall: float
    limit: float  # seconds from the start of the job to the wall
    source: str  # who says so

    @property
    def is_guess(self) -> bool:
        return self.source == GUESS

    def seconds_left(self) -> float:
        return self.wall - time.monotonic()

    def margin(self, *, commit_s: float = 0.0, pause_s: float = 0.0) -> float:
        """How long before the wall a program is asked to stop.

        `commit_s` is the longest commit so far, `pause_s` the longest time in which the program did not look whether it should
        stop. Never more than half the limit: a program that is never allowed to work makes no progress.
        """
        given = seconds_from_environment("NANOCHAT_MARGIN_S")
        if given is not None:
            return given
        low, high = SECONDS_OF_MARGIN
        share = min(max(SHARE_OF_MARGIN * self.limit, low), high)
        return min(max(COMMITS_IN_MARGIN * commit_s, share) + pause_s, self.limit / 2)


def find_deadline(*, job: str | None, runtime_min: float | None, began: float | None = None) -> Deadline | None:
    """The wall of this job: from NANOCHAT_RUNTIME_S (other schedulers, tests), from SLURM, or None where there is none.

    `began` is when this job did, as nearly as we know. The guess counts from there, or a launcher that had to wait for the
    stage would go on past the wall.
    """
    given = seconds_from_environment("NANOCHAT_RUNTIME_S")
    if given is not None:
        return Deadline(time.monotonic() + given, given, "NANOCHAT_RUNTIME_S")
    if job is None:
        return None
    left = slurm.seconds_left(job)
    if left is not None:
        limit = slurm.time_limit(job)
        return None if left == float("inf") else Deadline(time.monotonic() + left, max(left, limit or 0), "SLURM")
    if runtime_min:
        return Deadline((time.monotonic() if began is None else began) + runtime_min * 60, runtime_min * 60, GUESS)
    return None


def seconds_from_environment(name: str) -> float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name}: {text!r} is not a number of seconds") from None
