"""Who works on a stage. One at a time: a training that two processes write is lost time at best.

A stage's state folder lies on a file system that several machines share, where locks may do nothing and clocks differ. So
nothing here rests on flock, nor on comparing times of two machines:

    claims/00000007.json   made with O_EXCL, so that of all who try for a number exactly one gets it. The highest number works
                           on the stage; every other one has lost it. Whoever judges that 7 is dead, or sees it released, tries
                           for 8. However late somebody acts on an old judgement, they find 8 taken and have harmed nobody.
    lease.json             the holder's claim once more, rewritten every 10 s: for people, for `nanochat.watch`, and as the
                           heartbeat whose standing still tells that a holder is dead

Old claims stay (the last 20): somebody who sees an old state of the folder must find their number taken.

The numbers fence as well: a program that was frozen for so long that it was taken for dead looks for a higher number before it
commits (`nanochat.jobs.attempt`), and writes nothing when there is one.

A holder is dead when its process is gone (on the same machine), when SLURM says that its job does not run, or when its
heartbeat does not change while we watch for two minutes. One that lives is asked to commit and to let go.

Covered: holders killed, frozen, cut off, on lost nodes; any number of takers at once. Not covered: a holder frozen for more
than two minutes exactly between its last look and the renaming of its commit. The same training commits the same bits there.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.jobs import slurm
from nanochat.jobs.attempt import CLAIMS, ask_to_stop, let_all_read, newest_claim, now_text, write_whole
from nanochat.jobs.deadline import seconds_from_environment
from nanochat.jobs.processes import is_alive, process_space, start_time
from nanochat.manifest import read_json_object
from nanochat.storage import sweep

log = logging.getLogger("nanochat")

LEASE = "lease.json"
HEARTBEAT_S = 10.0
SILENCE_S = 120.0
HANDOVER_S = 15 * 60.0
SECONDS_BETWEEN_WORDS = 30.0
POLL_S = 1.0
SECONDS_BETWEEN_QUESTIONS = 10.0  # to SLURM, which is shared
KEPT_CLAIMS = 20


@dataclass(frozen=True)
class Holder:
    """Who holds a claim, as its file tells it."""

    claim: int
    job: str | None = None
    restart: int | None = None
    host: str = "?"
    pid: int = 0
    pid_started: int | None = None
    process_space: str = ""
    name: str = ""
    log: str | None = None
    started: str = "?"

    def __str__(self) -> str:
        job = f"SLURM job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}"


class Lease:
    """A claim that this process holds, kept alive by a thread until it is released or lost."""

    def __init__(self, state: Path, holder: Holder, *, on_loss: Callable[[], None] = lambda: None):
        self.state, self.holder, self.on_loss = state, holder, on_loss
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.keep, name="heartbeat", daemon=True)
        self.beat()
        self.thread.start()

    @property
    def is_lost(self) -> bool:
        return newest_claim(self.state) != self.holder.claim

    def new_holder(self) -> Holder:
        return read_holder(self.state, newest_claim(self.state))

    def keep(self) -> None:
        seconds = seconds_from_environment("NANOCHAT_HEARTBEAT_S") or HEARTBEAT_S
        can_write = True
        while not self.ended.wait(seconds):
            try:
                if self.is_lost:
                    return self.on_loss()
                self.beat()
                can_write = True
            except OSError as error:  # full or unreachable for now; if it stays so, others will take us for dead
                if can_write:
                    log.warning(f"{self.state / LEASE}: cannot be renewed ({error.strerror}); trying again")
                can_write = False

    def beat(self) -> None:
        write_whole(self.state / LEASE, {**asdict(self.holder), "heartbeat": now_text(), "beat": time.monotonic_ns()})

    def release(self) -> None:
        """Let go of the stage, so that the next one need not wait."""
        self.ended.set()
        self.thread.join()
        if self.is_lost:
            return
        write_whole(claim_path(self.state, self.holder.claim), {**asdict(self.holder), "released": now_text()})
        (self.state / LEASE).unlink(missing_ok=True)


def take_lease(
    state: Path, *, name: str, log_path: str | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Lease:
    """Become the one who works on the stage: at once if nobody does, else when the holder is dead or has let go.

    Raises UserError if a living holder does not let go in time, or if `should_stop()` becomes true while waiting.
    """
    (state / CLAIMS).mkdir(parents=True, exist_ok=True)
    sweep(state)
    while True:
        newest = newest_claim(state)
        if newest and not is_released(state, newest):
            outlast(state, read_holder(state, newest), should_stop)
        holder = claim(state, newest + 1, name=name, log_path=log_path)
        if holder is not None:
            return Lease(state, holder)


def claim(state: Path, number: int, *, name: str, log_path: str | None) -> Holder | None:
    """Try for a number; None if somebody else has it, or a higher one."""
    job = slurm.job_id()
    holder = Holder(
        claim=number,
        job=job,
        restart=slurm.num_restarts(job) if job else None,
        host=slurm.host(),
        pid=os.getpid(),
        pid_started=start_time(os.getpid()),
        process_space=process_space(),
        name=name,
        log=log_path,
        started=now_text(),
    )
    try:
        descriptor = os.open(claim_path(state, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        let_all_read(descriptor)
        file.write(json.dumps(asdict(holder)) + "\n")
        file.flush()
        os.fsync(descriptor)
    if newest_claim(state) != number:
        return None
    for old in range(number - KEPT_CLAIMS, 0, -1):
        try:
            claim_path(state, old).unlink()
        except FileNotFoundError:
            break
    return holder


def claim_path(state: Path, number: int) -> Path:
    return state / CLAIMS / f"{number:08d}.json"


def is_released(state: Path, number: int) -> bool:
    return "released" in read_json_object(claim_path(state, number))


def read_holder(state: Path, number: int) -> Holder:
    """Who holds a claim. Of one whose file is empty (its writer was killed on the way) nothing is known but the number."""
    found = read_json_object(claim_path(state, number))
    known: dict[str, Any] = {key: found[key] for key in Holder.__dataclass_fields__ if key in found}
    return Holder(**{**known, "claim": number})


# -- waiting for a holder ----------------------------------------------------------------------------------------------------


def outlast(state: Path, holder: Holder, should_stop: Callable[[], bool]) -> None:
    """Return when the holder does not work any more: it is dead, has let go, or somebody else came before us."""
    watched, request = Heartbeat(state), Request(state)
    was_here = was_here_before(state)
    while newest_claim(state) == holder.claim and not is_released(state, holder.claim):
        if holder.pid == 0:  # read between the making of its file and the writing
            holder = read_holder(state, holder.claim)
        if death := watched.death_of(holder):
            return log.info(f"{state.name}: its holder ({holder}) {death}; going on from its last commit")
        if not was_here or holder.job == slurm.job_id():
            request.insist(holder)
        elif watched.has_changed:
            raise UserError(
                f"{state}: {holder} took this stage over while job {slurm.job_id()} was away from its node. "
                "It goes on; this job stops"
            )
        if should_stop():
            raise UserError(f"{state}: stopped while waiting for {holder} to let go of this stage")
        time.sleep(POLL_S)


class Request:
    """A living holder is asked once to commit and let go; we say now and then that we wait, and not for ever."""

    def __init__(self, state: Path):
        self.state = state
        self.patience = seconds_from_environment("NANOCHAT_HANDOVER_S") or HANDOVER_S
        self.began: float | None = None
        self.said = 0.0

    def insist(self, holder: Holder) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began, self.said = now, float("-inf")
            ask_to_stop(self.state, holder.claim, reason="handover", text=f"{own_name()} takes this stage over")
        if now - self.said >= SECONDS_BETWEEN_WORDS:
            self.said = now
            waited = f"waiting {now - self.began:.0f} s so far"
            log.info(f"{self.state.name}: {holder} works on this stage; asked it to commit and let go, {waited}")
        if now - self.began >= self.patience:
            raise UserError(
                f"{self.state}: {holder} works on this stage and did not let go within {self.patience / 60:.0f} minutes. "
                f"End it ({f'scancel {holder.job}' if holder.job else f'kill {holder.pid} on {holder.host}'}), or wait until "
                "it has finished, and run the same command again."
            )


class Heartbeat:
    """How long a lease file has stood still while we watched, by our own clock alone, and what else tells of a death."""

    def __init__(self, state: Path):
        self.path = state / LEASE
        self.silence = seconds_from_environment("NANOCHAT_SILENCE_S") or SILENCE_S
        self.seen = self.first = self.read()
        self.since = time.monotonic()
        self.asked_slurm = float("-inf")

    @property
    def has_changed(self) -> bool:
        return self.seen != self.first

    def death_of(self, holder: Holder) -> str | None:
        """How we know that the holder is dead, in words; None if it may live."""
        now, seen = time.monotonic(), self.read()
        if seen != self.seen:
            self.seen, self.since = seen, now
        if is_gone(holder):
            return "is gone"
        if now - self.asked_slurm >= SECONDS_BETWEEN_QUESTIONS:
            self.asked_slurm = now
            if is_job_over(holder):
                return "does not run any more, says SLURM"
        if now - self.since >= self.silence:
            return f"has given no sign of life for {self.silence:.0f} s and is taken for dead"
        return None

    def read(self) -> str | None:
        try:
            return self.path.read_text()
        except OSError:
            return None


def was_here_before(state: Path) -> bool:
    """Whether an earlier run of this very SLURM job held the stage.

    A job that comes back from the queue gives way to whoever took the stage meanwhile: they were started later, by a person or
    a driver that still waits for them. If it asked for the stage back, the two would take it from each other in turn.
    """
    job = slurm.job_id()
    return job is not None and any(
        read_json_object(path).get("job") == job for path in (state / CLAIMS).iterdir() if path.suffix == ".json"
    )


def is_gone(holder: Holder) -> bool:
    """Whether the holder is proven dead from here: its process ran on this very machine, and does not any more."""
    in_sight = holder.process_space != "" and holder.process_space == process_space()
    return in_sight and not is_alive(holder.pid, holder.pid_started)


def is_job_over(holder: Holder) -> bool:
    if holder.job is None:
        return False
    if holder.job == slurm.job_id():
        # one job runs once at a time: an earlier run of it is over when this is a later one
        mine = slurm.num_restarts(holder.job)
        return mine is not None and holder.restart is not None and mine > holder.restart
    return slurm.is_running(holder.job, holder.restart) is False


def own_name() -> str:
    job = slurm.job_id()
    return f"SLURM job {job}" if job else f"process {os.getpid()} on {slurm.host()}"
