"""What a stage program and its launcher say to one another: please stop; so far I am here.

They talk through files in the stage's state folder, `results/{run}/resume/{stage}/`, because nothing else gets through
torchrun, SLURM and several machines alike: signals are eaten on the way and torchrun returns 1 whatever its ranks return.

    claims/00000007.json   who works on this stage: the highest number does, see `nanochat.jobs.lease`
    stop.json              a request to stop, addressed to the holder of one claim
    status.json            how far the program is, written by its main rank

The launcher (workflow/scripts/launch.py) names the folder in NANOCHAT_STATE. Without it there is no launcher: nothing is
written, nobody asks for a stop, and everything here does nothing.

A program asks `stop_requested()` whenever it could stop: once a step, once a batch. Asked to, it commits, says `stopped(...)`,
publishes nothing and exits 0.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.errors import UserError
from nanochat.jobs.processes import is_alive
from nanochat.manifest import read_json_object
from nanochat.storage import temporary_path

log = logging.getLogger("nanochat")

STATUS = "status.json"
STOP = "stop.json"
CLAIMS = "claims"
LOST = "lost"  # the reason to stop that nobody wrote: somebody else holds the stage, so nothing may be written any more

SECONDS_BETWEEN_WRITES = 2
TRIES_TO_TELL = 20  # a second apart
PR_SET_PDEATHSIG = 1


class BestEffort:
    """A file of the state folder that fails for a moment (a busy Lustre, a quota) must not end a training of days.

    For what only tells: status, history, requests to stop. Says so once. Who holds the stage, and commits, are no such thing.
    """

    def __init__(self) -> None:
        self.has_warned = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, OSError):
            return False
        if not self.has_warned:
            log.warning(f"{error}; going on, as nothing but messages is lost")
        self.has_warned = True
        return True


class Attempt:
    """One run of a stage program under a launcher. To be used by the main rank, which speaks for all.

    >>> attempt = Attempt.from_environment()
    >>> attempt.report(state="evaluating", step=3, num_steps=22, unit="tasks")
    >>> attempt.stop_requested()
    """

    def __init__(self, state: Path | None = None, claim: int = 0):
        self.state, self.claim = state, claim
        self.status: dict[str, Any] = read_json_object(state / STATUS) if state else {}
        self.last_write = self.last_poll = float("-inf")
        self.best_effort = BestEffort()

    @classmethod
    def from_environment(cls) -> "Attempt":
        folder = os.environ.get("NANOCHAT_STATE")
        return cls(Path(folder), int(os.environ.get("NANOCHAT_CLAIM", 0))) if folder else cls()

    # -- being asked ---------------------------------------------------------------------------------------------------------

    def stop_requested(self) -> str | None:
        """Why this program should stop: "deadline", "handover", "signal", "lost"; None if it may go on.

        After "lost" nothing may be committed: somebody else works on the stage by now.
        """
        if self.state is None:
            return None
        self.note_pause()
        with self.best_effort:  # a folder that cannot be read says nothing; the next question will tell
            if newest_claim(self.state) > self.claim:
                return LOST
        return read_stop(self.state, self.claim).get("reason")

    def ensure_held(self) -> None:
        """UserError if somebody else has taken the stage over. To be called before anything is written for good."""
        if self.state and newest_claim(self.state) > self.claim:
            raise UserError(
                f"{self.state}: somebody else has taken this stage over, as this program was silent for too long; "
                "it stops without writing anything"
            )

    def note_pause(self) -> None:
        """Remember the longest time between two questions: a stop has to be asked for that much earlier."""
        now = time.monotonic()
        if self.last_poll > float("-inf"):
            self.status["longest_pause"] = max(self.status.get("longest_pause", 0.0), round(now - self.last_poll, 3))
        self.last_poll = now

    # -- saying how far ------------------------------------------------------------------------------------------------------

    def report(self, **progress: Any) -> None:
        """Update status.json; keys that are not given stay. Written every 2 s at most, and when `state` changes."""
        if self.state is None:
            return
        is_news = progress.get("state", self.status.get("state")) != self.status.get("state")
        self.status.update(progress)
        if "step" in progress:
            self.status.setdefault("from_step", progress["step"])
        if is_news or time.monotonic() - self.last_write >= SECONDS_BETWEEN_WRITES:
            self.write()

    def stopped(self, step: int, num_steps: int) -> None:
        """Stopped as asked; what was done up to `step` is committed.

        This the launcher must hear: a program that exits 0 without a word has finished.
        """
        for _ in range(TRIES_TO_TELL):
            if self.finish("stopped", step=step, num_steps=num_steps, seconds_left=None):
                return
            time.sleep(1)
        raise UserError(f"{self.state}: {STATUS} cannot be written; all up to step {step:,} is committed, start it again")

    def finished(self) -> None:
        self.finish("finished", seconds_left=0.0)

    def failed(self, message: str) -> None:
        self.finish("failed", message=message)

    def finish(self, state: str, **progress: Any) -> bool:
        self.status.update(state=state, **progress)
        return self.write()

    def write(self) -> bool:
        """Whether the launcher can read it now, or need not."""
        self.last_write = time.monotonic()
        with self.best_effort:
            if self.state and newest_claim(self.state) <= self.claim:  # or it is not ours any more: the new holder's
                write_whole(self.state / STATUS, {**self.status, "claim": self.claim, "updated": now_text()})
            return True
        return False


# -- the files ---------------------------------------------------------------------------------------------------------------


def newest_claim(state: Path) -> int:
    """The number of the newest claim on a stage, 0 if there is none."""
    try:
        names = os.listdir(state / CLAIMS)
    except FileNotFoundError:
        return 0
    return max((int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()), default=0)


def ask_to_stop(state: Path, claim: int, *, reason: str, text: str) -> None:
    """Ask the holder of a claim to commit and stop. Whoever comes after it is not meant, so nobody has to clear the request."""
    write_whole(state / STOP, {"reason": reason, "text": text, "at": now_text(), "claim": claim})


def read_stop(state: Path, claim: int) -> dict[str, Any]:
    """The request to stop that is meant for the holder of this claim; {} if there is none."""
    found = read_json_object(state / STOP)
    return found if found.get("claim") == claim else {}


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a small file at once. Not synced: it tells of now, and after a power failure there is no now to tell of."""
    temporary = temporary_path(path.with_name(f"{path.name}.{threading.get_ident()}"))
    try:
        with open(temporary, "w") as file:
            let_all_read(file.fileno())
            file.write(json.dumps(content, sort_keys=True) + "\n")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def let_all_read(descriptor: int) -> None:
    """Whatever the umask: in a group's folder others must see who holds a stage, and how far it is."""
    with suppress(PermissionError):  # a file system without permissions
        os.fchmod(descriptor, 0o644)


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# -- living and dying with the launcher --------------------------------------------------------------------------------------


def follow_launcher() -> None:
    """End when the launcher ends, however it ends, and take SIGTERM for a request to stop. To be called before other work.

    Two ways, as neither works everywhere: the kernel kills this process when its parent dies (Linux), which under torchrun
    goes from launcher to torchrun and from there to the ranks; and a thread looks every second whether the launcher, whose
    number and start time are in NANOCHAT_LAUNCHER, still lives. A pipe held open by the launcher would not get through
    torchrun, which closes what it does not know.

    SLURM sends SIGTERM to every process of a job, or to none below the first. So it means "stop at a commit" here, unless it
    comes from torchrun, which so ends the ranks that are left when one has failed.
    """
    launcher = die_with_launcher()
    if launcher is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal cannot be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in every thread: they start later
    threading.Thread(target=watch, args=launcher, name="launcher", daemon=True).start()


def die_with_launcher() -> tuple[int, int | None] | None:
    """Have the kernel end this process when its parent ends. Returns the launcher's number and start time; None without one."""
    launcher = os.environ.get("NANOCHAT_LAUNCHER")
    if not launcher:
        return None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    number, _, started = launcher.partition(":")
    pid, start = int(number), int(started) if started else None
    if not is_alive(pid, start):  # it died before we asked the kernel
        log.error(f"error: the launcher, process {pid}, is gone; ending with it")
        os._exit(1)
    return pid, start


def watch(launcher: int, started: int | None) -> None:
    state, claim = Path(os.environ["NANOCHAT_STATE"]), int(os.environ.get("NANOCHAT_CLAIM", 0))
    best_effort, is_to_stop = BestEffort(), False
    while is_alive(launcher, started):
        sender = wait_for_sigterm()
        if sender == os.getppid() != launcher:
            os._exit(128 + signal.SIGTERM)  # torchrun: another rank has failed
        is_to_stop |= sender is not None
        with best_effort:  # and again in a second
            if is_to_stop:
                ask_to_stop(state, claim, reason="signal", text="the program received SIGTERM")
                is_to_stop = False
    os._exit(1)


def wait_for_sigterm(seconds: float = 1) -> int | None:
    """Who sent a SIGTERM within about a second; None if nobody did."""
    if not hasattr(signal, "sigtimedwait"):  # macOS
        time.sleep(seconds)
        return None
    found = signal.sigtimedwait([signal.SIGTERM], seconds)
    return found.si_pid if found else None
