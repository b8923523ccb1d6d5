"""What a storage system answers when it cannot take a file, in words for people: full, over a quota, read-only, broken."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.errors import UserError

REMEDIES = {
    errno.EIO: "the storage failed (input/output error); nothing was published. Run the same command again once it is mended",
    errno.EROFS: "the file system is read-only; results/ and resources/ must be in a folder that this account can write to",
    errno.ESTALE: "the file system lost the file (stale handle); run the same command again",
    errno.EACCES: "this account may not write here; results/ and resources/ must be in a folder that it can write to",
}


class StorageError(UserError, OSError):
    """A write that failed: words for people, and an OSError for those who go on without the file."""


@contextmanager
def storage_errors(path: Path, *, needed: int | None = None, is_exact: bool = True) -> Iterator[None]:
    """Turn what the system says about writing `path` into a StorageError.

    `needed`: bytes that were to be written there; at least that many if not `is_exact`.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if not (words := explain(error, path, needed, is_exact)):
            raise
        found = StorageError(words)
        found.errno = error.errno
        raise found from error


def explain(error: OSError, path: Path, needed: int | None, is_exact: bool) -> str | None:
    """What happened to a write and what to do; None for errors that are none of the storage's."""
    if error.errno == errno.ENOSPC:
        return (
            f"{path}: the disk is full. Needed: {amount(needed, is_exact)}. Free: {free(path)}. Nothing was published; make "
            "room, and run the same command again"
        )
    if error.errno == errno.EDQUOT:
        return (
            f"{path}: over the quota of this account or group (bytes, or number of files). Needed: "
            f"{amount(needed, is_exact)}. Nothing was published; make room or ask for more, and run the same command again"
        )
    return f"{path}: {REMEDIES[error.errno]}" if error.errno in REMEDIES else None


def amount(needed: int | None, is_exact: bool) -> str:
    if needed is None:
        return "unknown"
    return f"{'' if is_exact else 'at least '}{needed:,} bytes"


def free(path: Path) -> str:
    """Bytes that are left for this account where `path` is, or that there is no room for a further file."""
    folder = next((parent for parent in Path(path).parents if parent.exists()), Path("."))
    try:
        left = os.statvfs(folder)
    except OSError as error:
        return f"unknown ({error.strerror})"
    files = " and no further file" if left.f_files and not left.f_favail else ""
    return f"{left.f_bavail * left.f_frsize:,} bytes{files}"
