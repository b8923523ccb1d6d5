"""Publish what a stage made, and open it again only if every byte is as it was.

A stage is a folder with two small JSON files beside its data:

    manifest.json   what was made: the specification, the identities of what was read, size and sha256 of every file, and a few
                    results. The same work gives the same bytes. Written last: without it, the folder exists for nobody.
    record.json     how it was made: times, host, versions, and a copy of the manifest. Nothing hashes it.

Both are sealed: they end in a digest of themselves, so that one flipped bit in them shows, too.

A downloaded file has the same pair under its own name: `words.txt`, `words.txt.manifest.json`, `words.txt.record.json`.

Covered: a process killed at any point leaves the old state, the new one, or files that no manifest names; a damaged, truncated
or exchanged file is refused when it is opened. Not covered: somebody who changes a file and its manifest, digest and all.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.storage import atomic_path

FORMAT = 2
MANIFEST = "manifest.json"
RECORD = "record.json"
DIGEST = "digest"
IN_STAGE = "NANOCHAT_STATE"  # environment variable of programs that a launcher started
PATIENCE_S = 30.0  # a busy login node takes that long to start the program that publishes something again
POLL_S = 0.1


def publish(
    manifest: Path,
    *,
    specification: Mapping[str, Any],
    inputs: Mapping[str, Path | str],
    files: Sequence[str],
    results: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Make `files`, already in the manifest's folder, exist for everybody.

    `inputs` maps a name to the manifest of what was read (or to a plain file, for one that nobody published), or to its
    identity when it was read. `results` must not vary from run to run; what does goes to `record`.
    """
    content = sealed(
        {
            "format": FORMAT,
            "specification": dict(specification),
            "inputs": identities(inputs),
            "files": {name: describe(manifest.parent / name) for name in files},
            "results": dict(results),
        }
    )
    write_json(record_path(manifest), sealed({**record, "manifest": content}))
    write_json(manifest, content)


def republish(manifest: Path, *, specification: Mapping[str, Any], inputs: Mapping[str, Path | str]) -> bool:
    """Whether this very work was done before and its files are intact; if so, its manifest stands again.

    Snakemake deletes a declared output before it starts a job, and starts a job again when its own bookkeeping is lost. The
    record survives both.
    """
    content = read_record(manifest).get("manifest", {})
    wanted = {"specification": dict(specification), "inputs": identities(inputs)}
    if content.get("format") != FORMAT or any(content.get(key) != value for key, value in wanted.items()):
        return False
    if any(difference(manifest.parent / name, described) for name, described in content["files"].items()):
        return False
    write_json(manifest, content)
    return True


@dataclass(frozen=True)
class Artefact:
    """Something published. Files are checked when their path is asked for."""

    manifest: Path
    specification: dict
    inputs: dict
    files: dict
    results: dict
    identity: str

    @property
    def folder(self) -> Path:
        return self.manifest.parent

    def path(self, name: str, *, verify: bool = True) -> Path:
        """Path of one file, after its size and sha256 were found to be the manifest's."""
        if name not in self.files:
            raise UserError(
                f"{self.manifest}: there is no {name!r} in it; it lists {', '.join(sorted(self.files))}. It should be there: "
                f"to have it made again, run: python -m nanochat.verify --repair {self.folder}"
            )
        path = self.folder / name
        problem = difference(path, self.files[name]) if verify else None
        if problem:
            raise UserError(f"{path}: {problem}. To have it made again, run: python -m nanochat.verify --repair {self.folder}")
        return path

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())

    def record(self) -> dict:
        """How it was made. Empty if the record is gone, damaged or of something else: nothing depends on it."""
        record = read_record(self.manifest)
        is_own = hashlib.sha256(as_json(record.get("manifest")).encode()).hexdigest() == self.identity
        return record if is_own else {}


def open_verified(manifest: Path) -> Artefact:
    """Open something published. UserError if the manifest is missing or damaged, here; if a file is, when it is asked for."""
    manifest = Path(manifest)
    try:
        text = read_manifest(manifest)
    except OSError as error:
        raise UserError(f"{manifest}: cannot be read ({error.strerror}); this stage has not finished{away(manifest)}") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(
                f"{manifest}: has format {content['format']}, and this version reads {FORMAT}. Use the version that made it, "
                f"or have it made again: python -m nanochat.verify --repair {manifest.parent}"
            )
        if not is_sealed(content, text) or not is_of(manifest, content["files"]):
            raise ValueError
        return Artefact(
            manifest=manifest,
            specification=content["specification"],
            inputs=content["inputs"],
            files=content["files"],
            results=content["results"],
            identity=hashlib.sha256(text).hexdigest(),
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{manifest}: is damaged, or no manifest. To have it made again, run: python -m nanochat.verify --repair "
            f"{manifest.parent}"
        ) from None


def is_of(manifest: Path, files: Mapping[str, Any]) -> bool:
    """Whether these can be its files: in its folder; of words.txt.manifest.json, words.txt and nothing else."""
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        return False
    own = manifest.name.removesuffix(MANIFEST).removesuffix(".")
    return not own or list(files) == [own]


def read_manifest(manifest: Path) -> bytes:
    """Its bytes. A stage program waits a while for one that is away, but was published: its record is there.

    Its Snakemake saw it before it started the program. So another Snakemake (one that shares the folder of downloads) has taken
    it away to have it published again, which takes seconds.
    """
    end = time.monotonic() + (PATIENCE_S if IN_STAGE in os.environ else 0.0)
    while True:
        try:
            return manifest.read_bytes()
        except FileNotFoundError:
            if time.monotonic() >= end or not record_path(manifest).exists():
                raise
            time.sleep(POLL_S)


def away(manifest: Path) -> str:
    if manifest.exists() or not record_path(manifest).exists():
        return ""
    return ". It had: another Snakemake makes or publishes it again. Run the same command again when that one has finished"


def identities(inputs: Mapping[str, Path | str]) -> dict[str, str]:
    return {name: identity(found) if isinstance(found, Path) else found for name, found in inputs.items()}


def identity(path: Path) -> str:
    """What stands for an input in the manifests of those that read it: the sha256 of its manifest, or of a plain file."""
    return open_verified(path).identity if path.name.endswith(MANIFEST) else sha256(path)


def record_path(manifest: Path) -> Path:
    return manifest.with_name(manifest.name.removesuffix(MANIFEST) + RECORD)


def read_record(manifest: Path) -> dict[str, Any]:
    """The record beside a manifest; {} if it is gone or damaged."""
    try:
        text = record_path(manifest).read_bytes()
        record = json.loads(text)
        return record if is_sealed(record, text) else {}
    except (OSError, ValueError, TypeError):
        return {}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with a digest of itself, which `is_sealed` looks at."""
    as_read = json.loads(as_json(content))  # numbers as keys become text, and are sorted as such
    as_read.pop(DIGEST, None)  # of what it was made from
    return {**as_read, DIGEST: digest_of(as_read)}


def is_sealed(content: Any, text: bytes) -> bool:
    """Whether `text`, read as `content`, is to the byte what was written."""
    if not isinstance(content, dict):
        return False
    body = {key: value for key, value in content.items() if key != DIGEST}
    return content.get(DIGEST) == digest_of(body) and as_json(content).encode() == text


def digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(as_json(content).encode()).hexdigest()


def describe(path: Path) -> dict:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def difference(path: Path, described: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, in words; None if nothing is. The cheap checks come first."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != described["size"]:
        return f"has {size:,} bytes, and its manifest says {described['size']:,}"
    if sha256(path) != described["sha256"]:
        return "sha256 differs from its manifest"
    return None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- writing -----------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    write_whole_text(path, as_json(content))


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json_lines(path: Path, rows: Sequence[Any]) -> None:
    write_whole_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def write_whole_text(path: Path, text: str) -> None:
    content = text.encode()
    with atomic_path(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


def read_json_object(path: Path) -> dict[str, Any]:
    """A small file that can be written anew, so that nothing hangs on it: {} if it is not there, or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]
