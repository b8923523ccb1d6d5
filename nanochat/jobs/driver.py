"""One Snakemake works on a run at a time: a second one is refused before its first job, in words that say who is there.

    results/{run}/resume/snakemake/     claims/ and lease.json, as a stage has them (`nanochat.jobs.lease`)

The leases of stages keep results whole by themselves, whoever starts them. But two Snakemakes would take stages from one
another, each would report failed jobs, and with two configurations each would make anew what the other one has made.

A Snakemake that was killed holds nobody up: on its machine its process is seen to be gone, so the next one starts at once;
elsewhere its heartbeat has to stand still for two minutes. One that was frozen for so long finds its claim lost, and stops.

Covered: two machines, several paths to one folder, runs of one configuration side by side, where no stage is made by both.
Not covered: `snakemake download`, which may go on beside a training and makes nothing of a run.
"""

import atexit
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nanochat.errors import UserError
from nanochat.jobs.attempt import CLAIMS, BestEffort, newest_claim
from nanochat.jobs.lease import POLL_S, Heartbeat, Holder, Lease, claim, is_released, read_holder
from nanochat.jobs.processes import is_alive, process_space
from nanochat.storage import storage_errors

log = logging.getLogger("nanochat")

NAME = "snakemake"


def claim_runs(results: Path, runs: Iterable[str], *, give_up: Callable[[str], None]) -> None:
    """Claim what this Snakemake is going to work on, until it ends. UserError if another one works on it.

    `give_up` is told why, if a claim is lost on the way.
    """
    for run in sorted(runs):
        with storage_errors(results / run):
            lease = claim_run(results / run, give_up)
        atexit.register(release, lease)


def claim_run(folder: Path, give_up: Callable[[str], None]) -> Lease:
    state = folder / "resume" / NAME
    (state / CLAIMS).mkdir(parents=True, exist_ok=True)
    while True:
        newest = newest_claim(state)
        if newest and is_held(state, newest):
            refuse_if_alive(folder, state, newest)
        holder = claim(state, newest + 1, name=NAME, log_path=None)
        if holder is not None:
            return Lease(state, holder, on_loss=lambda: give_up(f"{another(read_holder(state, newest_claim(state)), folder)}"))


def refuse_if_alive(folder: Path, state: Path, number: int) -> None:
    """Return when the holder of this claim is dead or has let go. UserError as soon as it is seen to live."""
    watched, has_said = Heartbeat(state), False
    while is_held(state, number):
        holder = read_holder(state, number)
        if watched.death_of(holder):
            return
        if (watched.has_changed or is_here(holder)) and is_held(state, number):  # its last change is that it lets go
            raise UserError(
                f"{another(holder, folder)}, since {holder.started}. Nothing was started. Wait until it has finished, or end "
                f"it (kill {holder.pid} on {holder.host}), and run the same command again"
            )
        if not has_said:
            has_said = True
            log.warning(
                f"{folder}: a Snakemake that does not run on this machine has not let go of it ({holder}); looking for up to "
                f"{watched.silence:.0f} s whether it lives"
            )
        time.sleep(POLL_S)


def is_held(state: Path, number: int) -> bool:
    return newest_claim(state) == number and not is_released(state, number)


def is_here(holder: Holder) -> bool:
    return holder.process_space == process_space() != "" and is_alive(holder.pid, holder.pid_started)


def another(holder: Holder, folder: Path) -> str:
    return f"another Snakemake (process {holder.pid} on {holder.host}) works on {folder}"


def release(lease: Lease) -> None:
    with BestEffort():
        lease.release()
