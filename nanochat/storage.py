"""Putting files where they stay: names for what is half written, folders, syncing, and words for what a full disk answers.

What is being written has a name of its own, `.model.safetensors.tmp-HOST-PID`, until it is whole and synced. So whoever comes
after a process that was killed can tell what is left of it: `sweep` removes it.

Covered: processes killed at any point; disks that are full, over a quota, read-only, broken. Not covered: disks that say that
they have synced and have not.
"""

import errno
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import UserError
from nanochat.jobs.processes import is_number_taken

REMEDIES = {
    errno.EIO: "the storage failed (input/output error); nothing was published. Run the same command again once it is mended",
    errno.EROFS: "the file system is read-only; results/ and resources/ must be in a folder that this account can write to",
    errno.ESTALE: "the file system lost the file (stale handle); run the same command again",
    errno.EACCES: "this account may not write here; results/ and resources/ must be in a folder that it can write to",
}
TEMPORARY = re.compile(r"\..+\.tmp-(?P<host>.+)-(?P<pid>\d+)")
STALE_S = 3600  # a file of another machine's process that nobody has written to for so long is nobody's


# -- writing -----------------------------------------------------------------------------------------------------------------


def temporary_path(path: Path, *, pid: int | None = None) -> Path:
    """Beside `path`, the name under which this process (or another of this machine) writes it."""
    return path.with_name(f".{path.name}.tmp-{platform.node()}-{pid or os.getpid()}")


@contextmanager
def atomic_path(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends, and vanishes when it fails.

    StorageError if it cannot be written; `size`, its bytes, if they are known, is for the message of a full disk.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with storage_errors(path, needed=size) as needs:
        make_folder(path.parent)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            needs.at_least(size_of(temporary))
            with suppress(OSError):
                temporary.unlink()
            raise


def make_folder(folder: Path) -> None:
    """As `mkdir -p`; new names are synced, or a power failure could take what is in the folder with it."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(new):
        sync(place.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


# -- what is left of others --------------------------------------------------------------------------------------------------


def sweep(folder: Path) -> None:
    """Remove what processes that are gone have left half written in a folder: files, and commits."""
    for path in folder.glob(".*.tmp-*"):
        match = TEMPORARY.fullmatch(path.name)
        if not match or not is_abandoned(path, is_here=match["host"] == platform.node(), pid=int(match["pid"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # the next attempt will
                path.unlink()


def is_abandoned(path: Path, *, is_here: bool, pid: int) -> bool:
    """Whether nobody writes a file any more: its process ran on this machine and is gone, or it stood still for an hour."""
    if is_here and (pid == os.getpid() or not is_number_taken(pid)):
        return True
    try:
        return time.time() - path.stat().st_mtime > STALE_S
    except OSError:
        return False


# -- words -------------------------------------------------------------------------------------------------------------------


class StorageError(UserError, OSError):
    """A write that failed: words for people, and an OSError for those who go on without the file."""


@dataclass
class Needs:
    """The bytes that a write is about, for the message of a full disk."""

    num_bytes: int | None
    is_exact: bool = True

    def at_least(self, num_bytes: int) -> None:
        """So many, if nobody knew."""
        if self.num_bytes is None:
            self.num_bytes, self.is_exact = num_bytes, False

    def __str__(self) -> str:
        number = max(1, self.num_bytes or 0)
        return f"{'' if self.is_exact and self.num_bytes else 'at least '}{number:,} byte{'s' if number > 1 else ''}"


@contextmanager
def storage_errors(path: Path, *, needed: int | None = None, is_exact: bool = True) -> Iterator[Needs]:
    """Turn what the system says about writing `path` into a StorageError.

    `needed`: bytes that were to be written there; at least that many if not `is_exact`.
    """
    needs = Needs(needed, is_exact)
    try:
        yield needs
    except StorageError:
        raise
    except OSError as error:
        if not (words := explain(error, path, needs)):
            raise
        found = StorageError(words)
        found.errno = error.errno
        raise found from error


def explain(error: OSError, path: Path, needs: Needs | None = None) -> str | None:
    """What happened to a write and what to do; None for errors that are none of the storage's."""
    needs = needs or Needs(None)
    if error.errno == errno.ENOSPC:
        return (
            f"{path}: the disk is full. Needed: {needs}. Free: {free(path)}. Nothing was published; make room, and run the "
            "same command again"
        )
    if error.errno == errno.EDQUOT:
        return (
            f"{path}: over the quota of this account or group (bytes, or number of files). Needed: {needs}. Nothing was "
            "published; make room or ask for more, and run the same command again"
        )
    return f"{path}: {REMEDIES[error.errno]}" if error.errno in REMEDIES else None


def free(path: Path) -> str:
    """Bytes that are left for this account where `path` is, or that there is no room for a further file."""
    folder = next((parent for parent in Path(path).parents if parent.exists()), Path("."))
    try:
        left = os.statvfs(folder)
    except OSError as error:
        return f"unknown ({error.strerror})"
    files = " and no further file" if left.f_files and not left.f_favail else ""
    number = left.f_bavail * left.f_frsize
    return f"{number:,} byte{'s' if number != 1 else ''}{files}"
