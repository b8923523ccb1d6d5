"""Read what may be absent, half-written, of another format or somebody else's: never an exception, never an endless read."""

import json
import os
import re
import stat
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_BYTES = 2**24
NUM_LOSSES = 24

Document = dict[str, Any]


def names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return []


def is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read(path: Path) -> bytes | None:
    """The bytes of a regular file of ordinary size, or None."""
    try:
        if not is_file(path) or path.stat().st_size > MAX_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def tail(path: Path, num_bytes: int = 2**16) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
            return file.read(num_bytes).decode(errors="replace")
    except OSError:
        return ""


def parsed(content: bytes | None) -> Document:
    """A JSON object, or an empty one for anything else."""
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def number(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # neither NaN nor infinite
    return value if is_number else None


def text(content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 1e30 else None
    return plain(value) if isinstance(value, str) and value else None


def moment(content: Mapping[str, Any], key: str) -> datetime | None:
    value = content.get(key)
    try:
        then = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return then.replace(tzinfo=UTC) if then and then.tzinfo is None else then


def plain(words: str, limit: int = 400) -> str:
    """Without what would steer a terminal, and not endless."""
    shown = "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in words[:limit])
    return shown + ("..." if len(words) > limit else "")


# -- logs and commits ---------------------------------------------------------------------------------------------------------


def launcher_said(log: Path | None, stage: str) -> str | None:
    """The launcher's last words on how a stage ended: what to do now is in them."""
    ends = re.compile(rf"{re.escape(stage)}: ((stopped|no progress|failed|the program was killed|SLURM) .*)")
    found = [match[1] for line in lines_of(log) if (match := ends.fullmatch(line))] if log else []
    return found[-1] if found else None


def last_error(log: Path, *, only_certain: bool = False) -> str | None:
    """The line of a log that says best what went wrong: ours, else an exception's, else the last."""
    lines = [plain(line) for line in lines_of(log)]
    patterns = [r"error: ", r"(\w+\.)*\w*(Error|Exception|Interrupt)\b(: |$)", r"(slurmstepd|srun): error"]
    for pattern in patterns:
        if found := [line for line in lines if re.match(pattern, line)]:
            return found[-1]
    return None if only_certain or not lines else lines[-1]


def lines_of(log: Path) -> list[str]:
    """The last lines of a log that say anything, as far as a terminal may see them."""
    lines = [plain(line, 1000).strip() for line in re.split(r"[\r\n]+", tail(log))]
    return [line for line in lines if line]


def losses(state_folder: Path) -> list[float]:
    """The training's losses up to its newest commit, averaged to at most NUM_LOSSES numbers."""
    step = newest_commit(state_folder)
    if step is None:
        return []
    rows = (read(state_folder / f"step_{step:08d}" / "metrics.jsonl") or b"").splitlines()
    stride = max(1, len(rows) // 2000)  # of a long training only every so many rows are parsed
    values = [value for row in rows[::stride] if (value := number(parsed(row), "loss")) is not None]
    size = -(-len(values) // NUM_LOSSES) or 1
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def newest_commit(state_folder: Path) -> int | None:
    steps = [int(match[1]) for name in names_in(state_folder) if (match := re.fullmatch(r"step_(\d{8})", name))]
    return max(steps, default=None)


def age(content: Document, key: str) -> float | None:
    then = moment(content, key)
    return (datetime.now(UTC) - then).total_seconds() if then else None


def log_age(log: Path) -> float | None:
    try:
        return time.time() - log.stat().st_mtime
    except OSError:
        return None
