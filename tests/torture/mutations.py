"""Ways in which a file can go wrong on a disk, at positions that a seed decides. Each leaves a file that differs, or none."""

import io
import json
import os
import random
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from safetensors.numpy import load, save

from nanochat.manifest import DIGEST, as_json, sealed

BLOCK = 4096  # what a disk or a network file system loses at once


def flip_a_bit(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_a_block(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((16, BLOCK)))
    return content[:start] + bytes(end - start) + content[end:]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def extend(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((bytes(BLOCK), rng.randbytes(rng.randint(1, BLOCK)), content[-rng.randint(1, len(content)) :]))


def other_version(content: bytes, rng: random.Random, *, suffix: str) -> bytes:
    """A file that is whole and well-formed, but of another format number; where there is none, of another content."""
    return (VERSIONS.get(suffix) or other_bytes)(content, rng)


CONTENT: dict[str, Callable[..., bytes]] = {
    "a bit flipped": flip_a_bit,
    "a block of zeros": zero_a_block,
    "truncated": truncate,
    "emptied": empty,
    "extended": extend,
    "other version": other_version,
}
SWAPPED, DELETED = "swapped", "deleted"
MUTATIONS = (*CONTENT, SWAPPED, DELETED)


def mutate(path: Path, mutation: str, rng: random.Random, *, peers: Sequence[Path] = ()) -> list[Path]:
    """Do it to a file, which may have other names (hard links): those stay as they are. Returns the paths that changed.

    `peers` are other files of its type, for one of which it is swapped. An empty list: there was nothing that differs.
    """
    if mutation == DELETED:
        path.unlink()
        return [path]
    if mutation == SWAPPED:
        return swap(path, peers, rng)
    content = path.read_bytes()
    options = {"suffix": path.suffix} if mutation == "other version" else {}
    for _ in range(100):  # a block may be zero already
        changed = CONTENT[mutation](content, rng, **options) if content else b"?"
        if changed != content:
            rewrite(path, changed)
            return [path]
    return []


def swap(path: Path, peers: Sequence[Path], rng: random.Random) -> list[Path]:
    content = path.read_bytes()
    others = [(peer, other) for peer in peers if (other := peer.read_bytes()) != content]
    if not others:
        return []
    peer, other = rng.choice(others)
    rewrite(path, other)
    rewrite(peer, content)
    return [path, peer]


def rewrite(path: Path, content: bytes) -> None:
    times = path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that decays tells nobody


# -- other versions ----------------------------------------------------------------------------------------------------------


def other_json(content: bytes, rng: random.Random) -> bytes:
    """Another format number, sealed anew if it was sealed; without a format, another number, or another text, somewhere."""
    found = json.loads(content)
    if isinstance(found, dict) and "format" in found:
        step = rng.choice((-1, 1))
        found["format"] = (
            found["format"] + step
            if isinstance(found["format"], int)
            else re.sub(r"\d+$", lambda number: str(int(number[0]) + step), found["format"])
        )
    elif isinstance(found, dict) and isinstance(found.get("manifest"), dict):  # a record, with the manifest of another version
        body = {key: value for key, value in found["manifest"].items() if key != DIGEST}
        found["manifest"] = sealed({**body, "format": body["format"] + rng.choice((-1, 1))})
    else:
        leaves = list(numbers_in(found))
        if not leaves:
            return content[:-1] + b' {"another": 1}'
        holder, key = rng.choice(leaves)
        holder[key] += 1
    if isinstance(found, dict) and DIGEST in found:
        found = sealed({key: value for key, value in found.items() if key != DIGEST})
    return as_json(found).encode()


def numbers_in(found: object):
    """(holder, key) of every number in a JSON value."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in pairs:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield found, key
        else:
            yield from numbers_in(value)


def other_lines(content: bytes, rng: random.Random) -> bytes:
    """The same lines in another order, or without one of them."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return other_bytes(content, rng)
    number = rng.randrange(len(lines) - 1)
    return b"".join(rng.choice((lines[::-1], lines[:number] + lines[number + 1 :])))


def other_tensors(content: bytes, rng: random.Random) -> bytes:
    tensors = load(content)
    name = rng.choice(sorted(tensors))
    return save({**tensors, name: tensors[name] + tensors[name].dtype.type(1)})


def other_array(content: bytes, rng: random.Random) -> bytes:
    array, file = np.load(io.BytesIO(content), allow_pickle=False), io.BytesIO()
    np.save(file, array[::-1])
    return file.getvalue()


def other_table(content: bytes, rng: random.Random) -> bytes:
    table = pa.parquet.read_table(io.BytesIO(content))
    file = io.BytesIO()
    pa.parquet.write_table(table.take(list(range(table.num_rows))[::-1]), file)
    return file.getvalue()


def other_zip(content: bytes, rng: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            lines = old.read(name).splitlines(keepends=True)
            new.writestr(name, b"".join(lines[:1] + lines[1:][::-1]) if name.endswith(".jsonl") else b"".join(lines))
    return file.getvalue()


def other_bytes(content: bytes, rng: random.Random) -> bytes:
    middle = rng.randrange(1, len(content)) if len(content) > 1 else 0
    return content[middle:] + content[:middle] + b"\n"


VERSIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": other_json,
    ".jsonl": other_lines,
    ".txt": other_lines,
    ".md": other_lines,
    ".safetensors": other_tensors,
    ".npy": other_array,
    ".parquet": other_table,
    ".zip": other_zip,
}
