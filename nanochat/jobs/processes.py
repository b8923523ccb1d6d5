"""Processes of this machine by number and start time, which together name one process for good: numbers are used again.

On Linux this reads /proc. Elsewhere start times are unknown (None), and a number alone must do. So it must where /proc hides
what is somebody else's (mounted with hidepid), and from within the namespace jail everything outside is somebody else's.
"""

import os
from pathlib import Path

PROC = Path("/proc")


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine started; None if there is no such process, or it has ended."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def is_alive(pid: int, started: int | None) -> bool:
    """Whether the process that had this number and began at that time still runs. A stopped one (SIGSTOP) does."""
    fields = stat_fields(pid)
    if not fields:
        return pid > 0 and is_number_taken(pid)
    return fields[0] not in "ZX" and started in (None, int(fields[19]))


def is_number_taken(pid: int) -> bool:
    """What the kernel says without /proc, to everybody about every process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def parent(pid: int) -> int | None:
    fields = stat_fields(pid)
    return int(fields[1]) if fields else None


def command(pid: int) -> list[str]:
    """The words that started a process; [] if it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself contain blanks and brackets: state, parent, ..."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def process_space() -> str:
    """What two processes must share for a number to mean the same process to both: the boot, and the namespace of numbers."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def snakemake_above(pid: int | None = None) -> list[tuple[int, int | None]]:
    """The processes from this one's parent up to the topmost Snakemake above it, as (number, start time); [] without one.

    While all of them live, there is somebody to hand the stage's result to.
    """
    found: list[tuple[int, int | None]] = []
    chain: list[tuple[int, int | None]] = []
    current = parent(pid or os.getpid())
    while current and current > 1:
        chain.append((current, start_time(current)))
        if any(Path(word).name == "snakemake" for word in command(current)[:3]):
            found = list(chain)
        current = parent(current)
    return found
