"""What was published in some folders, whether every byte of it is as it was, and what was made from what.

A manifest stands for the files that it lists; a kept task of an evaluation (part_*.json) for itself. A folder that is called
like a commit and has no manifest is a damaged one.
"""

import hashlib
import json
import os
import re
import stat
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, as_json, open_verified, read_record, record_path, sha256
from nanochat.partial import digest

EVERYTHING = (Path("results"), Path("resources"))
THREADS = min(8, os.cpu_count() or 1)
CHUNK = 1 << 23
SECONDS_BETWEEN_LINES = 5
COMMIT = re.compile(r"step_\d{8}")
PART = re.compile(r"part_.*\.json")


@dataclass
class Item:
    """Something that was published with its files: a stage, a download, a commit; or the kept task of an evaluation."""

    path: Path  # its manifest; of a task, its file
    text: bytes
    problems: dict[Path, str] = field(default_factory=dict)  # damaged file -> what is wrong with it
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, dict] = field(default_factory=dict)
    identity: str = ""
    is_other_version: bool = False

    @property
    def kind(self) -> str:
        if self.path.name != MANIFEST:
            return "file" if self.path.name.endswith(MANIFEST) else "task"
        return "commit" if COMMIT.fullmatch(self.path.parent.name) else "stage"

    @property
    def name(self) -> str:
        """As people call it: a folder, or a file."""
        if self.kind == "file":
            return str(self.path).removesuffix(f".{MANIFEST}")
        return str(self.path if self.kind == "task" else self.path.parent)

    @property
    def group(self) -> str:
        """The run, or the folder of downloads, that it belongs to."""
        parts = self.path.parts
        place = next((n for n, part in enumerate(parts) if part in ("results", "resources")), 0)
        return str(Path(*parts[: place + 2])) if len(parts) > place + 2 else str(self.path.parent)


@dataclass
class Survey:
    """All that was found."""

    items: list[Item] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    stale: list[tuple[Item, list[str]]] = field(default_factory=list)  # and the inputs that are no longer here
    needed_by: dict[Path, list[str]] = field(default_factory=dict)  # path of an item -> what was made from it
    num_files: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def damaged(self) -> list[Item]:
        return [item for item in self.items if item.problems]


def survey_of(folders: Sequence[Path]) -> Survey:
    """Look at everything in these folders. What was made from what is looked up in all of results/ and resources/, too."""
    began, survey = time.monotonic(), Survey()
    survey.items = [item for folder in unique(folders) for item in find(folder, survey)]
    check_files(survey)
    # what has vanished meanwhile was a commit that made room, or a stage that is being made again
    survey.items = [item for item in survey.items if not item.problems or os.path.lexists(item.path)]
    known = {item.path.absolute(): item for item in survey.items}
    for folder in EVERYTHING:
        if folder.is_dir() and not any(is_within(folder, other) for other in folders):
            known |= {item.path.absolute(): item for item in find(folder, Survey()) if item.path.absolute() not in known}
    relate(survey, list(known.values()))
    survey.seconds = time.monotonic() - began
    return survey


def unique(folders: Sequence[Path]) -> list[Path]:
    """Without those that are inside others, so that nothing is told twice."""
    kept: list[Path] = []
    for folder in sorted(set(folders), key=lambda folder: len(folder.absolute().parts)):
        if folder.is_dir() and not any(is_within(folder, other) for other in kept):
            kept.append(folder)
    return sorted(kept)


def is_within(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def find(folder: Path, survey: Survey) -> Iterator[Item]:
    """Every manifest, and every kept task, in a folder. Each is read; files are looked at later."""

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            survey.unchecked.append(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, onerror=note):
        here = Path(place)
        survey.links += [here / name for name in folders if (here / name).is_symlink()]
        folders.sort()
        if COMMIT.fullmatch(here.name) and MANIFEST not in names:
            yield Item(here / MANIFEST, b"", {here / MANIFEST: "is not there: nothing says what is in this commit"})
        for name in sorted(names):
            is_task = PART.fullmatch(name) and "resume" in here.parts
            if name == MANIFEST or name.endswith(f".{MANIFEST}") or is_task:
                try:
                    text = (here / name).read_bytes()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    note(error)
                    continue
                item = Item(here / name, text)
                (read_task if is_task else read_manifest)(item)
                yield item


# -- is it intact? -----------------------------------------------------------------------------------------------------------


def read_task(item: Item) -> None:
    try:
        kept = json.loads(item.text)
        is_whole = kept["sha256"] == digest(kept["content"]) and isinstance(kept["identity"], dict)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        item.problems[item.path] = "is damaged"


def read_manifest(item: Item) -> None:
    """Fill in what the manifest says, or what is wrong with it, and look at its record."""
    try:
        artefact = open_verified(item.path)
    except UserError as error:
        problem = str(error).removeprefix(f"{item.path}: ").partition(". ")[0].partition(";")[0]
        item.problems[item.path] = problem
        item.is_other_version = problem.startswith("has format")
        # the record has a copy, which tells what was made from this
        kept = read_record(item.path).get("manifest")
        item.identity = hashlib.sha256(as_json(kept).encode()).hexdigest() if kept else ""
        return
    item.inputs, item.files, item.identity = artefact.inputs, artefact.files, artefact.identity
    record = record_path(item.path)
    if os.path.lexists(record) and read_record(item.path).get("manifest") != json.loads(item.text):
        item.problems[record] = "is damaged, or of something else"


def check_files(survey: Survey) -> None:
    """Compare every file with its description: sizes first, then the content of those that have the right one."""
    to_read: list[tuple[Item, Path, dict]] = []
    for item in survey.items:
        for name, described in item.files.items():
            path = item.path.parent / name
            survey.num_files += 1
            try:
                found = path.stat()
            except OSError as error:
                note_problem(survey, item, path, error)
                continue
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
                item.problems[path] = "is no file"
            elif found.st_size != described["size"]:
                item.problems[path] = f"has {found.st_size:,} bytes, and its manifest says {described['size']:,}"
            else:
                survey.num_bytes += found.st_size
                to_read.append((item, path, described))
    progress = Progress(survey.num_bytes)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda file: hash_file(file[1], progress), to_read)
        for (item, path, described), found_digest in zip(to_read, digests, strict=True):
            if isinstance(found_digest, OSError):
                note_problem(survey, item, path, found_digest)
            elif found_digest != described["sha256"]:
                item.problems[path] = "sha256 differs from its manifest"


def note_problem(survey: Survey, item: Item, path: Path, error: OSError) -> None:
    """A file that may not be read may be good: nothing is removed for its sake."""
    if isinstance(error, PermissionError):
        survey.unchecked.append(f"{path}: cannot be read ({error.strerror})")
    else:
        item.problems[path] = f"cannot be read ({error.strerror})"


def hash_file(path: Path, progress: "Progress") -> str | OSError:
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                progress.add(len(chunk))
    except OSError as error:
        return error
    return found.hexdigest()


class Progress:
    """Bytes read so far, on stderr every few seconds:  checked 3.1 of 22.0 GB, 1.90 GB/s, about 10 s left"""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.began = self.said = time.monotonic()
        self.lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self.lock:
            self.done += num_bytes
            now = time.monotonic()
            if now - self.said >= SECONDS_BETWEEN_LINES:
                self.said = now
                pace = self.done / (now - self.began)
                left = f"{pace / 1e9:.2f} GB/s, about {(self.total - self.done) / pace:.0f} s left"
                print(f"checked {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB, {left}", file=sys.stderr, flush=True)


# -- what was made from what -------------------------------------------------------------------------------------------------


def relate(survey: Survey, known: Sequence[Item]) -> None:
    """Find what was made from each damaged item, near and far, and what was made from something that is no longer here."""
    readers: dict[str, list[Item]] = defaultdict(list)
    for item in known:
        for read in set(item.inputs.values()):
            readers[read].append(item)
    for item in survey.damaged:
        reached: dict[Path, Item] = {}
        todo = [item]
        while todo:
            for reader in readers.get(todo.pop().identity, []):
                if reader.path not in reached:
                    reached[reader.path] = reader
                    todo.append(reader)
        survey.needed_by[item.path] = sorted(reader.name for reader in reached.values())
    here = {item.identity for item in known}
    for item in survey.items:
        gone = [name for name, read in item.inputs.items() if read not in here and not is_plain_file(name, read)]
        if gone and item.kind == "stage":
            survey.stale.append((item, sorted(gone)))


def is_plain_file(name: str, identity: str) -> bool:
    """Whether an input is a file of one's own, which nobody published: it is named by its path."""
    try:
        return Path(name).is_file() and sha256(Path(name)) == identity
    except OSError:
        return False
