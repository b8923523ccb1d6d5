"""Run a stage program from outside it: one at a time in a stage's folder, without network, stopped before the wall, continued.

The launcher stays the program's parent, as it can do what the program cannot: see it die, speak with SLURM from outside the
jail, and outlive a training that hangs. It exits with

    0     the stage is finished
    75    stopped at a commit; the same command goes on from there (EX_TEMPFAIL of sysexits.h)
    1     stopped for good, or taken over by somebody else; the last line says why
    128+n stopped by signal n, or the program was
    other the program's own exit code

Continuing takes no exit code where SLURM can do it: the job puts itself back in the queue under its own number, so that for
Snakemake it never ended.
"""

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nanochat.errors import UserError
from nanochat.jobs import offline, slurm
from nanochat.jobs.attempt import STATUS, BestEffort, ask_to_stop, now_text, read_stop, write_whole
from nanochat.jobs.deadline import Deadline, find_deadline, seconds_from_environment
from nanochat.jobs.lease import Lease, take_lease
from nanochat.jobs.processes import is_alive, snakemake_above, start_time
from nanochat.manifest import read_json_object
from nanochat.stage import rule_of

log = logging.getLogger("nanochat")

ATTEMPTS = "attempts.jsonl"
TRY_AGAIN = 75
POLL_S = 0.5
GRACE_S = 25.0  # SLURM's KillWait is 30 s by default
SECONDS_TO_BE_ENDED = 180.0  # SLURM ends a job that it requeues
SECONDS_BETWEEN_REQUEUES = 10.0  # while slurmctld is too busy to answer
SECONDS_OF_PREEMPTION = 15 * 60.0
SECONDS_OF_GUESSING = 120.0
BARREN_ATTEMPTS = 2
# What the margin before the wall follows from the start. Not the longest pause: that of a job that was suspended lasts hours
KEPT_OF_STATUS = ("commit_seconds",)


@dataclass(frozen=True)
class Work:
    """What is to be run, and where."""

    command: Sequence[str]
    state: Path
    ranks: int = 1
    log_path: str | None = None
    runtime_min: float | None = None
    commits: bool = True  # whether it has something to go on from. What has not need not be asked to stop: it is ended

    @property
    def name(self) -> str:
        """The stage, as its folder is called: results/tiny/resume/chat_eval/sft -> chat_eval/sft"""
        parts = self.state.parts
        return "/".join(parts[parts.index("resume") + 1 :]) if "resume" in parts else self.state.name


def launch(work: Work) -> int:
    """Run the program to its end, or to a commit from which it can go on. Returns the exit code."""
    began, signals = time.monotonic(), Signals()
    lease = take_lease(work.state, name=work.name, log_path=work.log_path, should_stop=lambda: bool(signals.received))
    attempts = Attempts(work.state, lease)
    outcome = "refused"
    try:
        refuse_barren_restart(work, attempts)
        attempts.note("start")
        run = Run(work, lease, signals, began)
        code, outcome = conclude(run.to_its_end(), run)
    except UserError as error:
        write_status(work, lease.holder.claim, state="failed", message=str(error))
        raise
    finally:
        try:
            attempts.note("end", outcome=outcome)
        finally:
            with BestEffort():  # a stage that is finished stays so
                lease.release()
    if outcome == "requeue":
        return wait_for_requeue(run)
    if outcome == "signal":
        outlast_preemption(run)
    return code


class Signals:
    """The signals that ask a launcher to stop. One that was ignored already (nohup, background jobs) stays so."""

    def __init__(self) -> None:
        self.received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


# -- one attempt -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How the program ended: its exit code, why it was asked to stop (if it was), its own last word."""

    code: int
    reason: str | None
    text: str
    status: dict[str, Any]
    was_killed: bool  # by us, as it did not stop in time


class Run:
    """The program while it runs, and what may end it before it has finished."""

    def __init__(self, work: Work, lease: Lease, signals: Signals, began: float):
        self.work, self.lease, self.signals, self.began = work, lease, signals, began
        self.best_effort = BestEffort()
        self.claim = lease.holder.claim
        self.job = slurm.job_id()
        self.deadline = self.find_deadline()
        self.ask_again = time.monotonic() + SECONDS_OF_GUESSING
        self.is_preempted: bool | None = None if self.job else False  # None: SLURM has not said it yet
        # a SLURM job ends with everything in it; on a laptop a training would go on for nobody
        self.drivers = [] if self.job else snakemake_above()
        self.step_at_start = committed(work.state)
        write_status(work, self.claim, state="starting")
        self.child = self.start()

    def start(self) -> subprocess.Popen:
        jail = offline.jail(ranks=self.work.ranks)
        log.info(f"{self.work.name}: {jail.description}")
        environment = {
            "NANOCHAT_STATE": str(self.work.state.resolve()),
            "NANOCHAT_CLAIM": str(self.claim),
            "NANOCHAT_LAUNCHER": f"{os.getpid()}:{start_time(os.getpid()) or ''}",
        }
        several = ["-m", "nanochat.jobs.torchrun", str(self.work.ranks)] if self.work.ranks > 1 else []
        command = jail.wrap([sys.executable, *several, *self.work.command])
        # a group of its own: Ctrl-C in a terminal reaches the launcher alone, which has the program stop at a commit
        return subprocess.Popen(command, env={**os.environ, **jail.environment, **environment}, process_group=0)

    def to_its_end(self) -> Ending:
        kill_at, was_killed = float("inf"), False
        reason, text, was_asked = None, "", False
        while True:
            if self.is_lost():
                self.kill()
                return Ending(1, "lost", f"{self.lease.new_holder()} took this stage over", {}, True)
            if reason is None and (why := self.why_to_stop()):
                reason, text, patience = why
                log.info(f"{self.work.name}: {text}; {'asked to stop at a commit' if self.work.commits else 'ended'}")
                kill_at = time.monotonic() + (patience if self.work.commits else 0.0)
            if reason and not was_asked:
                was_asked = self.ask_to_stop(reason, text)
            if reason == "signal" and self.work.commits and self.is_preempted is None:
                # preempted, the job has the partition's GraceTime, which only SLURM knows
                self.is_preempted = slurm.is_preempted(self.job or "")
                kill_at += SECONDS_OF_PREEMPTION if self.is_preempted else 0.0
            if time.monotonic() >= kill_at and not was_killed:
                if self.work.commits:
                    log.warning(f"{self.work.name}: did not stop in time; ended by force, what was not committed is lost")
                was_killed = True
                self.kill()
            if self.has_ended():
                break
        asked = read_stop(self.work.state, self.claim)
        reason, text = asked.get("reason", reason), asked.get("text", text)
        return Ending(self.child.returncode, reason, text, self.status(), was_killed)

    def is_lost(self) -> bool:
        with self.best_effort:  # a folder that cannot be read says nothing; the next look will
            return self.lease.is_lost
        return False

    def ask_to_stop(self, reason: str, text: str) -> bool:
        with self.best_effort:
            ask_to_stop(self.work.state, self.claim, reason=reason, text=text)
            return True
        return False

    def has_ended(self) -> bool:
        try:
            self.child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def why_to_stop(self) -> tuple[str, str, float] | None:
        """(reason, in words, seconds until we end it by force), if the program is to stop now."""
        grace = seconds_from_environment("NANOCHAT_GRACE_S") or GRACE_S
        if not self.work.commits and (asked := read_stop(self.work.state, self.claim)):
            return asked["reason"], asked["text"], 0.0  # which a program that commits reads itself
        if self.signals.received:
            return "signal", f"received {signal.Signals(self.signals.received[0]).name}", grace
        if not all(is_alive(*driver) for driver in self.drivers):
            return "signal", "Snakemake is gone", grace
        self.improve_guess()
        if self.deadline:
            status = self.status()
            margin = self.deadline.margin(commit_s=status.get("commit_seconds", 0.0), pause_s=status.get("longest_pause", 0.0))
            if self.deadline.seconds_left() <= margin and not self.has_more_time(margin):
                left = max(0.0, self.deadline.seconds_left())
                return "deadline", f"{left:.0f} s before the wall (by {self.deadline.source})", left - min(10.0, margin / 4)
        return None

    def find_deadline(self) -> Deadline | None:
        return find_deadline(job=self.job, runtime_min=self.work.runtime_min, began=self.began)

    def improve_guess(self) -> None:
        """Ask SLURM for the wall again where it did not answer before: the guess may be hours off."""
        if self.deadline and self.deadline.is_guess and time.monotonic() >= self.ask_again:
            self.deadline = self.find_deadline()
            self.ask_again = time.monotonic() + SECONDS_OF_GUESSING

    def has_more_time(self, margin: float) -> bool:
        """Whether the job's limit was raised since we asked (`scontrol update`)."""
        if self.deadline and (self.deadline.source == "SLURM" or self.deadline.is_guess):
            self.deadline = find_deadline(job=self.job, runtime_min=None) or self.deadline
        return self.deadline is not None and self.deadline.seconds_left() > margin

    def status(self) -> dict[str, Any]:
        status = read_json_object(self.work.state / STATUS)
        return status if status.get("claim") == self.claim else {}

    def kill(self) -> None:
        """End the program and all that it started: its group, and under torchrun the ranks, whose parent dies."""
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def progress(self) -> tuple[int, int]:
        """(where this attempt began, what is committed now), by what is on disk or, where it tells, the program's own count."""
        status = self.status()
        if status.get("state") == "stopped" and "from_step" in status:
            return status["from_step"], status["step"]
        return self.step_at_start, committed(self.work.state)


# -- what comes after --------------------------------------------------------------------------------------------------------


def conclude(ending: Ending, run: Run) -> tuple[int, str]:
    """(exit code, outcome in a word), having said in one line what has happened and what to do."""
    if ending.reason == "lost":
        return say(run, f"{ending.text}; nothing more was written here"), "lost"
    has_stopped = ending.was_killed or (ending.code == 0 and ending.status.get("state") == "stopped")
    if has_stopped:
        return conclude_stopped(ending, run)
    if ending.code == 0:
        write_status(run.work, run.claim, state="finished", seconds_left=0.0)
        return 0, "finished"
    return conclude_failed(ending, run), "failed"


def conclude_stopped(ending: Ending, run: Run) -> tuple[int, str]:
    began, step = run.progress()
    total = f" of {ending.status['num_steps']:,}" if "num_steps" in ending.status else ""
    where = f"{ending.status.get('unit', 'steps').removesuffix('s')} {step:,}{total}" if run.work.commits else "its beginning"
    if ending.reason == "handover":
        return say(run, f"stopped at {where}, as {ending.text}"), "handover"
    if ending.reason == "signal":
        write_status(run.work, run.claim, state="stopped", step=step)
        first = run.signals.received[0] if run.signals.received else None
        say(run, f"stopped at {where} ({ending.text}); run the same command again to go on")
        return (128 + first if first else 1), "signal"
    if step <= began:
        write_status(run.work, run.claim, state="failed", message=no_progress(run, where))
        return say(run, no_progress(run, where)), "no progress"
    write_status(run.work, run.claim, state="stopped", step=step)
    if run.deadline and run.job and run.deadline.source != "NANOCHAT_RUNTIME_S":
        say(run, f"stopped before the wall at {where}; going on in a further run of job {run.job}")
        return TRY_AGAIN, "requeue"
    say(run, f"stopped before the wall at {where}; run the same command again to go on")
    return TRY_AGAIN, "stopped"


def no_progress(run: Run, where: str) -> str:
    limit = f" of {run.deadline.limit / 60:.0f} minutes" if run.deadline and run.deadline.limit >= 60 else ""
    return (
        f"no progress between the start of this attempt and the wall, both at {where}: the walltime{limit} is too short for "
        f"one commit. Raise it (set-resources: {rule_of(run.work.name)}: runtime), or lower what a step or an evaluation takes"
    )


def conclude_failed(ending: Ending, run: Run) -> int:
    code = 128 - ending.code if ending.code < 0 else ending.code
    log_path = f" ({run.work.log_path})" if run.work.log_path else ""
    again = f"once that is mended, run the same command again: it goes on from step {committed(run.work.state):,}"
    if code == 128 + signal.SIGKILL:
        asked = slurm.memory_requested()
        say(
            run,
            f"the program was killed by signal 9, which mostly means that the machine or the job ran out of memory: its "
            f"largest process held {max_resident_gb():.1f} GB{f', the job asked for {asked}' if asked else ''}. Ask for more "
            f"(set-resources: {rule_of(run.work.name)}: mem); {again}",
        )
    elif code > 128:
        say(run, f"the program was killed by signal {code - 128}; {again}")
    else:
        say(run, f"failed with exit code {code}; the lines above{log_path} say why; {again}")
    if ending.status.get("state") != "failed":  # it did not come to say so itself
        write_status(run.work, run.claim, state="failed", message=f"exit code {code}")
    return code


def say(run: Run, text: str) -> int:
    log.error(f"{run.work.name}: {text}")
    return 1


def max_resident_gb() -> float:
    """The most memory that any one process of the program held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


def wait_for_requeue(run: Run) -> int:
    """Put this job back in the queue; SLURM then ends it. Returns only where that did not happen until the wall."""
    job = run.job or ""
    refused = slurm.requeue(job)
    while refused and not slurm.is_definite(refused) and run.deadline and run.deadline.seconds_left() > 0:
        time.sleep(SECONDS_BETWEEN_REQUEUES)
        refused = slurm.requeue(job)
    if refused is None:
        time.sleep(SECONDS_TO_BE_ENDED)
        refused = f"nothing happened for {SECONDS_TO_BE_ENDED:.0f} s"
    log.error(f"{run.work.name}: SLURM did not requeue job {job} ({refused}); run the same command again to go on")
    return TRY_AGAIN


def outlast_preemption(run: Run) -> None:
    """Stay until SLURM ends a job that it preempts: one that ends in its time of grace is not put back in the queue."""
    end = time.monotonic() + GRACE_S
    while run.is_preempted is None and time.monotonic() < end:
        run.is_preempted = slurm.is_preempted(run.job or "")
        if run.is_preempted is None:
            time.sleep(POLL_S)
    if run.is_preempted:
        time.sleep(SECONDS_OF_PREEMPTION)


def write_status(work: Work, claim: int, **changes: Any) -> None:
    """status.json as the launcher knows better than the program: before it began, and after it died."""
    found = read_json_object(work.state / STATUS)
    if found.get("claim") != claim:
        found = {key: found[key] for key in KEPT_OF_STATUS if key in found}
    with BestEffort():
        write_whole(work.state / STATUS, {**found, "stage": work.name, "claim": claim, **changes, "updated": now_text()})


# -- the history of a stage --------------------------------------------------------------------------------------------------


class Attempts:
    """attempts.jsonl: a line when an attempt begins and one when it ends, unless it was killed.

    A line that a lost node or a full disk cut short is passed over, and does not spoil the next one.
    """

    def __init__(self, state: Path, lease: Lease):
        self.state, self.path, self.holder = state, state / ATTEMPTS, lease.holder

    def note(self, event: str, **more: Any) -> None:
        here = {"event": event, "job": self.holder.job, "restart": self.holder.restart, "host": self.holder.host}
        with BestEffort(), open(self.path, "a+b") as file:
            line = json.dumps({**here, "at": now_text(), "step": committed(self.state), **more})
            file.seek(0)
            begin = "" if file.read()[-1:] in (b"", b"\n") else "\n"
            file.write(f"{begin}{line}\n".encode())

    def barren(self, step: int) -> int:
        """How many runs of this SLURM job began at this very step, the last ones in a row."""
        count = 0
        for line in reversed(self.starts()):
            if line.get("job") != self.holder.job or line.get("step") != step:
                break
            count += 1
        return count

    def starts(self) -> list[dict[str, Any]]:
        found: list[Any] = []
        with BestEffort():
            for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
                with suppress(ValueError):
                    found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict) and line.get("event") == "start"]


def refuse_barren_restart(work: Work, attempts: Attempts) -> None:
    """SLURM restarts a job whose node failed or that was preempted; one that gets nowhere must not do so for ever.

    One fruitless run may be bad luck; two in a row are not. Starting the job anew, under another number, forgets this.
    """
    holder, step = attempts.holder, committed(work.state)
    if holder.job is None or holder.restart == 0:
        return
    barren = attempts.barren(step)
    if barren >= BARREN_ATTEMPTS:
        raise UserError(
            f"{work.name}: SLURM has restarted job {holder.job} {holder.restart or barren} times, and the last {barren} runs "
            f"all began at step {step:,} and committed nothing. Stopped for good: find out what ended them (sacct -j "
            f"{holder.job} --duplicates -o state,exitcode,nodelist), then start Snakemake again"
        )


def committed(state: Path) -> int:
    """How far a stage is on disk: the step of a training's newest commit, or the number of tasks an evaluation has kept."""
    try:
        names = os.listdir(state)
    except FileNotFoundError:
        return 0
    steps = [int(found[1]) for name in names if (found := re.fullmatch(r"step_(\d{8})", name))]
    return max([*steps, sum(name.startswith("part_") and name.endswith(".json") for name in names)])
