"""What a file was when it was first downloaded, for files whose sha256 the catalogue does not give.

    resources/remote.lock.jsonl, a line a file:
    {"key": "eval_bundle", "revision": null, "sha256": "5f0c...", "size": 162000000, "said_by": null, "url": "https://..."}

The first line of a key and revision counts, and every later download must equal it. `said_by` is who vouched for the digest:
the publisher's header, or null = nobody, it was what arrived. Lines are only ever appended; a torn one is passed over.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.downloads.checks import Expected, Found
from nanochat.errors import UserError
from nanochat.storage import storage_errors

log = logging.getLogger("nanochat")


@dataclass(frozen=True)
class Locked:
    """One line."""

    key: str
    revision: str | None
    size: int
    sha256: str
    url: str
    said_by: str | None = None


class Lock:
    """The lock file at `path`; it need not exist."""

    def __init__(self, path: Path):
        self.path = path

    def find(self, key: str, revision: str | None) -> Locked | None:
        return next((line for line in self.lines() if (line.key, line.revision) == (key, revision)), None)

    def expected(self, key: str, revision: str | None) -> Expected:
        """What the lock says of a file; nothing if it was never downloaded."""
        line = self.find(key, revision)
        return Expected(line.size, line.sha256, str(self.path), self._remedy(key)) if line else Expected()

    def settle(self, key: str, revision: str | None, found: Found, url: str) -> None:
        """Record what was found, unless a line stands already. UserError if that line says something else."""
        line = self.find(key, revision)
        if line is None:
            with storage_errors(self.path):
                self._append(Locked(key, revision, found.size, found.sha256, url, found.said_by))
            line = self.find(key, revision) or Locked(key, revision, found.size, found.sha256, url)
        if line.sha256 != found.sha256:
            raise UserError(f"{url}: sha256 is {found.sha256}, and {self.path} says {line.sha256}{self._remedy(key)}")

    def lines(self) -> list[Locked]:
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            return []
        found = []
        for number, row in enumerate(text.splitlines(), 1):
            try:
                found.append(Locked(**json.loads(row)))
            except (ValueError, TypeError):
                if row.strip():
                    log.warning(f"{self.path}: line {number} is torn, and is passed over")
        return found

    def _append(self, line: Locked) -> None:
        """One write at the end of the file: lines of several processes do not mix."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if is_torn else b"") + json.dumps(asdict(line), sort_keys=True).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remedy(self, key: str) -> str:
        return (
            f". This is not the file of the first download, on which results may rest. To accept it knowingly, delete the line "
            f"of {key} in {self.path} and run the download again"
        )
