"""Put jobs back in the queue that SLURM ended for good so that others could run, or with a node that failed.

Snakemake's SLURM plugin (2.8) takes PREEMPTED for a pause, and NODE_FAIL too under --slurm-requeue: it waits until SLURM runs
the job again. Where a partition or QOS cancels what it preempts, SLURM never does, and Snakemake would wait for ever. So the
process that waits looks for such jobs every half minute and requeues them: same number, and the stage goes on from its commit.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nanochat.jobs import slurm

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LOOKS = 30.0
ENDED_BY_SLURM = "PREEMPTED,NODE_FAIL"
FIELDS = "%i|%T|%V|%k|%Z"  # id, state, submitted, comment, folder


def watch(folder: Path, *, seconds: float = SECONDS_BETWEEN_LOOKS, give_up: Callable[[str], None]) -> threading.Event:
    """Look after the jobs that are submitted from `folder` from now on, until the returned event is set or this process ends.

    `give_up` is called with a sentence when SLURM does not take a job back: somebody waits for it in vain.
    """
    begun = datetime.now().replace(microsecond=0)
    ended = threading.Event()

    def look() -> None:
        refused: set[str] = set()
        while not ended.wait(seconds):
            for job, state, comment in ended_by_slurm(folder, since=begun):
                reason = slurm.requeue(job) if job not in refused else None
                if reason is None:
                    log.warning(f"SLURM job {job} ({comment}) was ended by SLURM ({state}) and is back in the queue")
                elif not slurm.is_running(job):
                    refused.add(job)
                    give_up(f"SLURM job {job} ({comment}) was ended by SLURM ({state}), which does not take it back: {reason}")

    threading.Thread(target=look, name="preemption", daemon=True).start()
    return ended


def ended_by_slurm(folder: Path, *, since: datetime) -> list[tuple[str, str, str]]:
    """(id, state, comment) of this person's jobs from `folder` that SLURM ended for good, submitted not before `since`.

    Older ones belong to a Snakemake that is no more: nobody waits for them, and the stage may have a new job already.
    """
    lines = (slurm.ask("squeue", "-h", "--me", "-t", ENDED_BY_SLURM, "-o", FIELDS) or "").splitlines()
    found = []
    for line in lines:
        job, state, submitted, comment, place = (line.split("|") + [""] * 5)[:5]
        if Path(place) == folder and is_time(submitted) and datetime.fromisoformat(submitted) >= since:
            found.append((job, state, comment))
    return found


def is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
