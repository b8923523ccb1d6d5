"""Fetch one file of the catalogue, check it, and publish it with a manifest of its own."""

import argparse
import json
from pathlib import Path

from nanochat.catalogue import CatalogueFile, load_catalogue
from nanochat.download import check, fetch
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, atomic_path
from nanochat.stage import Stage, log, run_program

GENERATED = "generated:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path, required=True, help="the catalogue that lists the file")
    parser.add_argument("--specification", type=json.loads, required=True, help='JSON: {"key": ..., "revision": ...}')
    parser.add_argument("--manifest", type=Path, required=True, help="FILE.manifest.json beside the file to make")
    args = parser.parse_args()

    stage = Stage(args.manifest, specification=args.specification, inputs={})
    entry = load_catalogue(args.catalogue).get(args.specification["key"])
    destination = args.manifest.with_name(args.manifest.name.removesuffix(f".{MANIFEST}"))
    if stage.is_done() and is_as_catalogued(destination, entry):
        return
    if entry.url.startswith(GENERATED):
        from nanochat.tiny_world import make_file

        with atomic_path(destination) as temporary:
            make_file(entry.url.removeprefix(GENERATED), temporary)
    else:
        fetch(entry.url, destination, size=entry.size, digest=entry.sha256)
    stage.publish([destination.name], results={"rows": entry.rows, "licence": entry.licence}, record={"url": entry.url})


def is_as_catalogued(path: Path, entry: CatalogueFile) -> bool:
    """Whether the file that is here already is the one that the catalogue describes now."""
    try:
        check(path, entry.url, size=entry.size, digest=entry.sha256)
    except UserError as error:
        log.warning(f"{error}; it is fetched again")
        return False
    return True


if __name__ == "__main__":
    run_program(main)
