"""Fetch one file of the catalogue, check it, and publish it with a manifest of its own."""

import argparse
import json
import logging
import os
from pathlib import Path

from nanochat.catalogue import CatalogueFile, load_catalogue
from nanochat.downloads.ask import redact
from nanochat.downloads.checks import Expected, Found, check
from nanochat.downloads.fetch import fetch
from nanochat.downloads.lock import Lock
from nanochat.downloads.part import sweep_notes
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST
from nanochat.stage import Stage, log, run_program
from nanochat.storage import atomic_path

GENERATED = "generated:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path, required=True, help="the catalogue that lists the file")
    parser.add_argument("--lock", type=Path, required=True, help="where digests are recorded that the catalogue does not give")
    parser.add_argument("--specification", type=json.loads, required=True, help='JSON: {"key": ..., "revision": ...}')
    parser.add_argument("--manifest", type=Path, required=True, help="FILE.manifest.json beside the file to make")
    args = parser.parse_args()
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings show addresses with everything in them

    entry = load_catalogue(args.catalogue).get(args.specification["key"])
    destination = args.manifest.with_name(args.manifest.name.removesuffix(f".{MANIFEST}"))
    require_writable(destination)
    stage = Stage(args.manifest, specification=args.specification, inputs={})
    sweep_notes(destination)
    lock = Lock(args.lock)
    expected = expectation(entry, lock)
    is_done = stage.is_done()
    if is_here(destination, entry, expected, is_done):
        if is_done:
            return
        log.info(f"{destination}: is here already, with the sha256 of {expected.said_by}")
    elif entry.url.startswith(GENERATED):
        generate(entry, destination)
    else:
        fetch(entry.url, destination, expected, confirm=lambda found: settle(entry, lock, found))
    record = {"url": redact(entry.url)}
    stage.publish([destination.name], results={"rows": entry.rows, "licence": entry.licence}, record=record)


def expectation(entry: CatalogueFile, lock: Lock) -> Expected:
    """What the file must be: the catalogue's word first, then that of the first download."""
    catalogued = Expected(entry.size, entry.sha256)
    return catalogued.or_else(lock.expected(entry.key, entry.revision)) if is_remote(entry) else catalogued


def is_remote(entry: CatalogueFile) -> bool:
    """Whether it comes from a publisher. A folder of one's own may change, and so may what is generated here."""
    return entry.url.startswith(("http:", "https:"))


def settle(entry: CatalogueFile, lock: Lock, found: Found) -> None:
    if entry.sha256 is None and is_remote(entry):
        lock.settle(entry.key, entry.revision, found, redact(entry.url))


def is_here(path: Path, entry: CatalogueFile, expected: Expected, is_done: bool) -> bool:
    """Whether the file that is expected is here already: published before, or, where its sha256 is known, in whatever way."""
    if not path.exists() or not (is_done or expected.sha256):
        return False
    try:
        check(path, str(path), expected, name=path.name)
    except UserError as error:
        log.warning(f"{error}; it is fetched again")
        return False
    return True


def generate(entry: CatalogueFile, destination: Path) -> None:
    from nanochat.tiny_world import make_file

    with atomic_path(destination) as temporary:
        make_file(entry.url.removeprefix(GENERATED), temporary)


def require_writable(destination: Path) -> None:
    folder = next(folder for folder in destination.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{destination}: is missing or not what the catalogue says, and {folder} is read-only. If it is shared, ask its "
            "owner to run the download; or use a resources folder of your own"
        )


if __name__ == "__main__":
    run_program(main)
