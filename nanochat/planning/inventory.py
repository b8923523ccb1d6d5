"""Whether everything that was published is still there and unchanged: cheap enough to ask at every start.

A file whose sha256 was found right is remembered with its size, time of change and inode. Only what differs from that is read
again, so that 24 GB of shards cost a few system calls. The memory is a convenience: lost, everything is read once more.

Covered: files that are missing, truncated, replaced by an error page, exchanged for another version or damaged, as long as
size, time or inode tell that something happened; everything, where `everything` is read.
Not covered, unless `everything` is read: a disk that changes bytes by itself.
"""

import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import open_verified, read_json_object, sha256, write_json

log = logging.getLogger("nanochat")

SECONDS_BETWEEN_LINES = 5
THREADS = min(8, os.cpu_count() or 1)

Fingerprint = list  # size, time of change in ns, inode, the sha256 that was found right


def find_problems(manifests: Iterable[Path], *, memory: Path, everything: bool = False, new: bool = True) -> list[str]:
    """A sentence, with the command that repairs it, for every published file that is not as its manifest says.

    Hashes what changed since it was last found right (`everything`: all files; `new=False`: not what nobody has hashed yet).
    `memory` is the file that remembers; if it cannot be written, nothing is lost but time.
    """
    known = read_json_object(memory)
    problems: list[str] = []
    to_hash: list[tuple[Path, dict, Fingerprint]] = []
    for manifest in sorted(set(manifests)):
        try:
            artefact = open_verified(manifest)
        except UserError as error:
            problems.append(str(error))
            continue
        for name, described in artefact.files.items():
            path = artefact.folder / name
            try:
                found = path.stat()
            except OSError as error:
                problems.append(sentence(path, f"cannot be read ({error.strerror})"))
                continue
            if found.st_size != described["size"]:
                what = f"has {found.st_size:,} bytes, and its manifest says {described['size']:,}{glance(path)}"
                problems.append(sentence(path, what))
                continue
            fingerprint = [found.st_size, found.st_mtime_ns, found.st_ino, described["sha256"]]
            if everything or (known.get(str(path)) != fingerprint and (new or str(path) in known)):
                to_hash.append((path, described, fingerprint))
    wrong = hash_all(to_hash)
    good = {str(path): fingerprint for path, _, fingerprint in to_hash if path not in wrong}
    if good:
        remember(memory, good)
    return problems + [sentence(path, what) for path, what in wrong.items()]


def hash_all(files: list[tuple[Path, dict, Fingerprint]]) -> dict[Path, str]:
    """What is wrong with the content of each file that is not as described."""
    total = sum(described["size"] for _, described, _ in files)
    done, said = 0, time.monotonic()
    wrong = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for (path, described, _), problem in zip(files, pool.map(check_content, files), strict=True):
            done += described["size"]
            if problem:
                wrong[path] = problem
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("checking files: %.1f of %.1f GB", done / 1e9, total / 1e9)
    return wrong


def check_content(file: tuple[Path, dict, Fingerprint]) -> str | None:
    path, described, _ = file
    try:
        return None if sha256(path) == described["sha256"] else f"sha256 differs from its manifest{glance(path)}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def glance(path: Path) -> str:
    """What the file is instead, where its first bytes tell."""
    try:
        with open(path, "rb") as file:
            start = file.read(200).lstrip()[:40]
    except OSError:
        return ""
    if start[:1] == b"<":
        return f" (it begins like a web page: {start.decode(errors='replace')!r})"
    return " (it is empty)" if not start else ""


def sentence(path: Path, problem: str) -> str:
    return (
        f"{path}: {problem}. To have it made again, run: python -m nanochat.verify --repair {path.parent}, "
        "and then the same snakemake command"
    )


def remember(memory: Path, good: dict[str, Fingerprint]) -> None:
    # read again: another program may have added to it meanwhile. What is lost in a race is read once more, no worse
    try:
        write_json(memory, read_json_object(memory) | good)
    except OSError as error:
        log.info("%s: cannot be written (%s); these files will be read again at the next start", memory, error.strerror)
