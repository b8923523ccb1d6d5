"""The bytes of a file that is not whole yet, kept so that a later start can go on from them.

    .shard_00007.parquet.devel-1.4711.part         the bytes; devel-1 and 4711 are host and process id of the one who writes
    .shard_00007.parquet.devel-1.4711.part.json    what they are the beginning of: address, ETag, size, sha256

Nobody writes into another's part, and the file appears by one rename: two processes that fetch the same file do the work twice
and do no harm. A start takes over the part of a process that is gone, also by rename, so that only one gets it; locks would not
do, because flock does nothing on some cluster file systems. Gone is: on this host, no such process; on another, untouched for
an hour.
A process fetches a file once at a time.
Not covered: a power failure while a file is fetched for which nobody has a digest.
"""

import glob
import hashlib
import os
import platform
import re
from pathlib import Path
from types import TracebackType

from nanochat.manifest import read_json_object, write_json
from nanochat.storage import is_abandoned, size_of, sync

HOST = re.sub(r"[^A-Za-z0-9_-]", "-", platform.node()) or "host"


class Part:
    """Opened with the bytes of an earlier start, if they are of the same file. Closed, it stays unless empty or published."""

    def __init__(self, destination: Path, *, address: str, digest: str | None):
        self.path = destination.with_name(f".{destination.name}.{HOST}.{os.getpid()}.part")
        self.note = note_of(self.path)
        self.address = hashlib.sha256(address.encode()).hexdigest()  # an address may hold a password
        self.etag: str | None = None
        self.digest = self._given_digest = digest
        self.total: int | None = None  # as an earlier answer stated it
        self.announced: int | None = None  # as this one does
        self.is_pieced_together = False
        take_over(destination, self.path, self.note)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)
        if self.size:
            self._resume()

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_empty = not self.size
        self._file.close()
        if is_empty:
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def missing(self) -> int | None:
        """Bytes that are still to come; None if nobody knows."""
        return None if self.announced is None else self.announced - self.size

    @property
    def can_go_on(self) -> bool:
        """Whether bytes that follow can be told from those of another file: by a strong ETag, or at the end by a digest."""
        return self.etag is not None or self.digest is not None

    def describe(self, *, etag: str | None, size: int | None, digest: str | None) -> None:
        """Note what the bytes are the beginning of. Before they are written: a killed process must not leave unknown bytes."""
        self.etag = etag if etag and etag.startswith('"') else None  # a weak one (W/"...") does not stand for bytes
        self.digest, self.announced = digest, size
        self.is_pieced_together = self.size > 0
        write_json(self.note, {"address_sha256": self.address, "etag": self.etag, "size": size, "sha256": digest})

    def write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def touch(self) -> None:
        """Before a long wait: this process is not gone."""
        os.utime(self.path)

    def begin_anew(self) -> None:
        self._file.truncate(0)
        self.etag, self.total, self.digest, self.is_pieced_together = None, None, self._given_digest, False

    def publish(self, destination: Path) -> None:
        sync(self.path)
        os.replace(self.path, destination)
        sync(destination.parent)
        self.note.unlink(missing_ok=True)

    def _resume(self) -> None:
        note = read_json_object(self.note)
        same_digest = self.digest is not None and note.get("sha256") == self.digest
        other_digest = None not in (self.digest, note.get("sha256")) and not same_digest
        if same_digest or (note.get("address_sha256") == self.address and not other_digest):
            self.etag, self.is_pieced_together = note.get("etag"), True
            self.digest, self.total = self.digest or note.get("sha256"), note.get("size")
        if not self.is_pieced_together or not self.can_go_on:
            self.begin_anew()


def take_over(destination: Path, path: Path, note: Path) -> None:
    """Give the largest part of a process that is gone the name `path`, and remove the others."""
    taken = False
    for part in sorted(abandoned(destination), key=size_of, reverse=True):
        if taken:
            part.unlink(missing_ok=True)
            note_of(part).unlink(missing_ok=True)
        else:
            taken = take(part, path, note)


def sweep_notes(destination: Path) -> None:
    """Remove the notes of processes that were killed between publishing their bytes and removing what was noted of them."""
    for note in destination.parent.glob(f".{glob.escape(destination.name)}.*.part.json"):
        match = part_pattern(destination).fullmatch(note.name.removesuffix(".json"))
        if match and not note.with_name(match[0]).exists() and is_abandoned(note, is_here=match[1] == HOST, pid=int(match[2])):
            note.unlink(missing_ok=True)


def part_pattern(destination: Path) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(destination.name)}\.([A-Za-z0-9_-]+)\.(\d+)\.part")


def take(part: Path, path: Path, note: Path) -> bool:
    try:
        os.rename(part, path)
    except FileNotFoundError:  # another process was faster
        return False
    try:
        os.rename(note_of(part), note)
    except FileNotFoundError:  # killed before it was written: nobody knows whose bytes these are
        path.unlink()
        return False
    return True


def note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def abandoned(destination: Path) -> list[Path]:
    pattern = part_pattern(destination)
    found = []
    for path in destination.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and is_abandoned(path, is_here=match[1] == HOST, pid=int(match[2])):
            found.append(path)
    return found
