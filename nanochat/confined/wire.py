"""Values between two processes that do not trust each other: plain data in an encoding of our own, every size bounded.

    decode(encode([1, "a", {2.5: None}]))   ->  [1, "a", {2.5: None}]

Exact: integers of any size, nan and infinities, lone surrogates. An object of a class derived from a plain one arrives as the
plain one, read by the plain one's own methods. Everything else arrives as an Opaque. Copies, not identities: a list that is in
another one twice arrives as two.
"""

from __future__ import annotations

import os
from itertools import islice

TYPE_CHECKING = False  # not from typing, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_MESSAGE_BYTES = 16_000_000
MAX_DEPTH = 100
MAX_OPAQUE_ITEMS = 10_000  # of something that may have no end

CONSTANTS: dict[bytes, Any] = {b"N": None, b"T": True, b"F": False}
SEQUENCES: dict[Any, bytes] = {list: b"l", tuple: b"t", set: b"s", frozenset: b"z"}


class Malformed(Exception):
    """Not what encode() makes, or over a limit."""


class Opaque:
    """Stands for an object that is no plain data: equal to nothing else; its items can be gone through if it had any."""

    def __init__(self, kind: str, is_true: bool, items: list | None):
        self.kind, self.is_true, self.items = kind, is_true, items

    def __bool__(self) -> bool:
        return self.is_true

    def __iter__(self) -> Iterator:
        if self.items is None:
            raise TypeError(f"{self.kind!r} object is not iterable")
        return iter(self.items)

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


# -- messages ----------------------------------------------------------------------------------------------------------------


def send(pipe: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    rest = len(data).to_bytes(4, "big") + data
    while rest:
        rest = rest[write(pipe, rest) :]


def receive(pipe: int) -> bytes | None:
    """The next message; None if the pipe ended."""
    size = read(pipe, 4)
    return None if size is None else read(pipe, int.from_bytes(size, "big"))


def read(pipe: int, size: int) -> bytes | None:
    if size > MAX_MESSAGE_BYTES:
        raise Malformed(f"a message of {size:,} bytes")
    data = bytearray()
    while len(data) < size:
        more = os.read(pipe, min(size - len(data), 1_000_000))
        if not more:
            return None
        data += more
    return bytes(data)


# -- encoding ----------------------------------------------------------------------------------------------------------------


def encode(value: object) -> bytes:
    """Malformed if it is nested too deeply or too large."""
    parts: list[bytes] = []
    add(value, parts.append, 0)
    data = b"".join(parts)
    if len(data) > MAX_MESSAGE_BYTES:
        raise Malformed(f"a value of {len(data):,} bytes")
    return data


def add(value: Any, put: Callable[[bytes], None], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"a value nested more than {MAX_DEPTH} levels deep")
    kind = type(value)  # not isinstance: an object may lie about its __class__
    if value is None or value is True or value is False:
        put(b"N" if value is None else b"T" if value is True else b"F")
    elif issubclass(kind, int):
        put_text(b"i", b"%x" % int.__add__(value, 0), put)
    elif issubclass(kind, float):
        put_text(b"f", float.hex(value).encode(), put)
    elif issubclass(kind, complex):
        put(b"c")
        add(complex.real.__get__(value), put, depth)
        add(complex.imag.__get__(value), put, depth)
    elif issubclass(kind, str):
        put_text(b"u", str.encode(value, "utf-8", "surrogatepass"), put)
    elif issubclass(kind, (bytes, bytearray)):
        tag, plain = (b"b", bytes) if issubclass(kind, bytes) else (b"a", bytearray)
        put_text(tag, bytes(plain.__getitem__(value, slice(None))), put)
    elif issubclass(kind, dict):
        put_items(b"d", [part for pair in dict.items(value) for part in pair], put, depth)
    elif base := next((base for base in SEQUENCES if issubclass(kind, base)), None):
        put_items(SEQUENCES[base], list(base.__iter__(value)), put, depth)
    elif kind is range:
        put_items(b"r", [value.start, value.stop, value.step], put, depth)
    else:
        put_items(b"o", [kind.__name__, bool(value), items_of(value)], put, depth)


def put_text(tag: bytes, text: bytes, put: Callable[[bytes], None]) -> None:
    put(tag + len(text).to_bytes(4, "big"))
    put(text)


def put_items(tag: bytes, items: list, put: Callable[[bytes], None], depth: int) -> None:
    put(tag + len(items).to_bytes(4, "big"))
    for item in items:
        add(item, put, depth + 1)


def items_of(value: Any) -> list | None:
    return list(islice(value, MAX_OPAQUE_ITEMS)) if hasattr(type(value), "__iter__") else None


# -- decoding ----------------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Any:
    """Malformed if these are not exactly the bytes of one value."""
    try:
        value, end = take(data, 0, 0)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if end != len(data):
        raise Malformed("something behind the value")
    return value


def take(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    tag = data[at : at + 1]
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deeply")
    if tag in CONSTANTS:
        return CONSTANTS[tag], at + 1
    if tag == b"c":
        real, at = take(data, at + 1, depth)
        imaginary, at = take(data, at, depth)
        return complex(real, imaginary), at
    size, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    if size > len(data) - at:  # an item takes a byte or more
        raise ValueError("something is missing")
    if tag in TEXTS:
        return TEXTS[tag](data[at : at + size]), at + size
    if tag not in COLLECTIONS:
        raise ValueError(f"unknown tag {tag!r}")
    items = []
    for _ in range(size):
        item, at = take(data, at, depth + 1)
        items.append(item)
    return COLLECTIONS[tag](items), at


TEXTS: dict[bytes, Callable[[bytes], Any]] = {
    b"i": lambda text: int(text, 16),
    b"f": lambda text: float.fromhex(text.decode()),
    b"u": lambda text: text.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"a": bytearray,
}
COLLECTIONS: dict[bytes, Callable[[list], Any]] = {
    b"l": list,
    b"t": tuple,
    b"s": set,
    b"z": frozenset,
    b"d": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    b"r": lambda items: range(*items),
    b"o": lambda items: Opaque(*items),
}
