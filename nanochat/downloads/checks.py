"""Whether bytes can be the file that was asked for: size, sha256, error pages in its place, marks of its format, disk space."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import sha256

HEAD_BYTES = 512  # enough to tell an error page from data
SHOWN_BYTES = 80

# what a file of this kind begins and ends with
PARQUET, ZIP = (b"PAR1",), (b"PK\x03\x04", b"PK\x05\x06")
BEGINNINGS = {".parquet": PARQUET, ".zip": ZIP}
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22 + (1 << 16)  # the end record, before a comment of at most 64 KiB

HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
XML_ERROR = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<Error\b", re.I)
JSON_ERROR = re.compile(rb'\s*\{\s*"(error|errors|message|detail|status|statuscode|code)"\s*:', re.I)
JSON_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class Expected:
    """What a file must be, as far as somebody said so. `said_by` and `remedy` are words for the message if it is not."""

    size: int | None = None
    sha256: str | None = None
    said_by: str = "the catalogue"
    remedy: str = ""

    def or_else(self, other: "Expected") -> "Expected":
        """This where it knows the sha256, else the other."""
        if self.sha256 is not None or (other.sha256 is None and other.size is None):
            return self
        return Expected(self.size if self.size is not None else other.size, other.sha256, other.said_by, other.remedy)


UNKNOWN = Expected()


@dataclass(frozen=True)
class Found:
    """What a file is. `said_by` names who had said so before; None = nobody."""

    size: int
    sha256: str
    said_by: str | None = None


def check(path: Path, shown: str, expected: Expected, *, name: str) -> Found:
    """Size and sha256 of a file. UserError, beginning with `shown`, if it is not `expected` or cannot be the file `name`."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if size == 0:
        raise UserError(f"{shown}: the file is empty")
    if problem := error_page(head, name):
        raise UserError(f"{shown}: {problem}")
    if expected.size is not None and size != expected.size:
        raise UserError(
            f"{shown}: has {size:,} bytes, and {expected.said_by} says {expected.size:,}; it starts with {printable(head)}"
            + expected.remedy
        )
    digest = sha256(path)
    if expected.sha256 is None:
        if not has_end_mark(path, name):
            raise UserError(f"{shown}: breaks off: it does not end as a {Path(name).suffix} file does")
    elif digest != expected.sha256:
        raise UserError(
            f"{shown}: sha256 is {digest}, and {expected.said_by} says {expected.sha256}; "
            f"the file was changed by its publisher or on the way{expected.remedy}"
        )
    return Found(size, digest, expected.said_by if expected.sha256 else None)


def error_page(head: bytes, name: str, content_type: str = "") -> str | None:
    """What the first bytes are instead of the beginning of the file `name`, in words; None if nothing speaks against them."""
    suffix = Path(name).suffix
    if suffix not in (".html", ".htm") and (HTML.match(head) or content_type.startswith("text/html")):
        return f"the answer is a web page, not the file (a login or a captive portal?); it starts with {printable(head)}"
    if XML_ERROR.match(head) or (JSON_ERROR.match(head) and (suffix not in JSON_SUFFIXES or b'"error' in head)):
        return f"the answer is an error message, not the file; it starts with {printable(head)}"
    if head and suffix in BEGINNINGS and not head.startswith(BEGINNINGS[suffix]):
        return f"the answer is not a {suffix} file; it starts with {printable(head)}"
    return None


def has_end(name: str) -> bool:
    """Whether files of this name's format have a mark at their end."""
    return Path(name).suffix in BEGINNINGS


def has_end_mark(path: Path, name: str) -> bool:
    """Whether the file ends as its format does; True for formats without a mark."""
    suffix, size = Path(name).suffix, path.stat().st_size
    with open(path, "rb") as file:
        if suffix == ".parquet":  # ..., footer, 4 bytes with the footer's length, PAR1
            file.seek(max(0, size - 8))
            end = file.read()
            return end.endswith(PARQUET) and int.from_bytes(end[:4], "little") + 12 <= size
        if suffix == ".zip":
            file.seek(max(0, size - ZIP_END_BYTES))
            return ZIP_END in file.read()
    return True


def printable(head: bytes) -> str:
    """The first bytes as people can read them, quoted."""
    text = head[:SHOWN_BYTES].decode("utf-8", errors="replace")
    return '"' + "".join(letter if letter.isprintable() and letter != "\ufffd" else "." for letter in text) + '"'


def require_space(folder: Path, num_bytes: int) -> None:
    """UserError if the disk has less room than that. Quotas are not seen here; they show when a write fails."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"{folder}: {worded_size(num_bytes)} needed, {worded_size(free)} free; make room and run the same command again"
        )


def worded_size(num_bytes: float) -> str:
    if num_bytes < 1_000_000:
        return f"{num_bytes:,.0f} bytes"
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"
