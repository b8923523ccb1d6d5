"""Read JSON lines strictly: a value a line, in UTF-8; a mistake is told with the file and the line.

Covered: line ends of any system, no line end behind the last line, a byte-order mark, blank lines (passed over); a key that is
    there twice, of which Python would keep the last without a word; brackets nested deeper than Python goes; what is no file.
Not covered: NaN and Infinity, which are no JSON and are read as Python reads them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.text import shown

BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


def read_lines(path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank. Cut at \\n alone: there are rarer line ends inside texts."""
    require_file(path, what)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    for mark, name in BYTE_ORDER_MARKS.items():
                        if line.startswith(mark):
                            raise UserError(f"{path}: is {name}; save it as UTF-8")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise UserError(f"{path}: cannot read {what}: {error.strerror}") from error


def require_file(path: Path, what: str) -> None:
    """UserError for what is no file: a folder, a link in a circle, a pipe, which would keep us waiting for ever."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read {what}: {getattr(error, 'strerror', error)}") from error
    if not path.is_file():
        raise UserError(f"{path}: cannot read {what}: this is {'a folder' if path.is_dir() else 'no regular file'}")


def parse(line: bytes) -> Any:
    """The value of a line. ValueError says what is wrong with it."""
    try:
        return json.loads(line.decode(), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at byte {error.start + 1} of the line") from error
    except RecursionError:
        raise ValueError("nested too deep: hundreds of brackets inside each other") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice in one object")
    return found
