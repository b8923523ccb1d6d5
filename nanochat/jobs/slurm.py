"""What a launcher asks of SLURM, in its own few words: time left, is that job still there, put me back in the queue.

Every answer may fail to come: commands time out when slurmctld is busy. None then means "not known", never "no".
"""

import os
import platform
import re
import subprocess

PATIENCE_S = 30.0
SECONDS_TO_SAY = 5.0  # to an answer that the end of the job depends on: it is asked for again
NO_ANSWER = "scontrol did not answer"
# in what scontrol says when SLURM has decided nothing: slurm_errno.c
UNDECIDED = (NO_ANSWER, "contact slurm controller", "imed out", "try again", "standby", "Zero Bytes", "pending execution")
MIN_JOB_AGE_S = 300  # SLURM's default
# states in which no process of the job runs any more, or none does yet (requeued). man squeue, "JOB STATE CODES"
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"),
    "TIMEOUT",
}
NOT_RUNNING = ENDED | {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"}


def job_id() -> str | None:
    """The job that this process runs in; None outside SLURM."""
    return os.environ.get("SLURM_JOB_ID")


def host() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def memory_requested() -> str | None:
    """What the job asked for, as SLURM tells it (MB a node), in words."""
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    return f"{int(megabytes) / 1000:.1f} GB" if megabytes.isdecimal() else None


def seconds_left(job: str) -> float | None:
    """Until the job's time limit; infinite if it has none; None if SLURM does not say."""
    return parse_duration(ask("squeue", "-h", "-j", job, "-o", "%L"))


def time_limit(job: str) -> float | None:
    return parse_duration(ask("squeue", "-h", "-j", job, "-o", "%l"))


def parse_duration(text: str | None) -> float | None:
    """MM:SS, HH:MM:SS or D-HH:MM:SS in seconds.  "1-02:03:04" -> 93784.0, "UNLIMITED" -> inf, "INVALID" -> None"""
    text = (text or "").strip()
    if text == "UNLIMITED":
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def num_restarts(job: str) -> int | None:
    """How often SLURM has put this job back in the queue. (SLURM_RESTART_COUNT does not reach a job's steps.)"""
    found = re.search(r"\bRestarts=(\d+)", ask("scontrol", "show", "job", job) or "")
    return int(found[1]) if found else None


def is_preempted(job: str) -> bool | None:
    """Whether SLURM has begun to preempt this job, which then has a time of grace left. None: SLURM does not say."""
    answer = ask("scontrol", "show", "job", job, patience=SECONDS_TO_SAY)
    if answer is None:
        return None
    found = re.search(r"\bPreemptTime=(\S+)", answer)
    return found is not None and found[1] not in ("None", "Unknown", "N/A")


def min_job_age() -> int:
    """For how many seconds SLURM remembers a job that has ended."""
    found = re.search(r"\bMinJobAge\s*=\s*(\d+)", ask("scontrol", "show", "config") or "")
    return int(found[1]) if found else MIN_JOB_AGE_S


def is_running(job: str, restart: int | None = None) -> bool | None:
    """Whether a job runs, and was not restarted since `restart`. None: SLURM does not say."""
    done = call("squeue", "-h", "-j", job, "-o", "%T")
    if done is None:
        return None
    if done.returncode:
        # it has left SLURM's memory; anything else (no contact, a broken configuration) tells nothing
        return False if "Invalid job id" in done.stderr else None
    state = done.stdout.strip().split("\n")[0].split(" ")[0]
    if not state or state in NOT_RUNNING:
        return False
    now = num_restarts(job) if restart is not None else None
    return now is None or now == restart


def requeue(job: str) -> str | None:
    """Put a running job back in the queue, under the same number. Returns why SLURM refused; None if it did it."""
    done = call("scontrol", "requeue", job)
    if done is None:
        return NO_ANSWER
    return (done.stderr.strip() or f"scontrol exited with {done.returncode}") if done.returncode else None


def is_definite(refusal: str) -> bool:
    """Whether SLURM will not do what it was asked; or it did not decide, and may be asked again."""
    return not any(text in refusal for text in UNDECIDED)


def ask(*words: str, patience: float = PATIENCE_S) -> str | None:
    done = call(*words, patience=patience)
    return done.stdout if done and done.returncode == 0 else None


def call(*words: str, patience: float = PATIENCE_S) -> subprocess.CompletedProcess | None:
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # a person's own may be anything
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=patience, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
