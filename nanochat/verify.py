"""Check every published file against its manifest: python -m nanochat.verify [--repair] [FOLDER ...]

Without folders: all of results/ and resources/. With --repair, the manifest and the record of what is damaged are removed, so
that the next run of the same snakemake command makes exactly that again.
"""

import argparse
import sys
from pathlib import Path

from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, open_verified, record_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="default: results resources")
    parser.add_argument("--repair", action="store_true", help="remove the manifests of what is damaged")
    args = parser.parse_args()

    folders = args.folders or [Path("results"), Path("resources")]
    if missing := [str(folder) for folder in args.folders if not folder.is_dir()]:
        parser.error(f"{', '.join(missing)}: no such folder")
    manifests = sorted(path for folder in folders for path in folder.rglob(f"*{MANIFEST}"))
    damaged = [manifest for manifest in manifests if not is_intact(manifest)]
    print(f"{len(manifests) - len(damaged)} of {len(manifests)} manifests are intact")
    if args.repair:
        for manifest in damaged:
            record_path(manifest).unlink(missing_ok=True)
            manifest.unlink()
            print(f"{manifest}: removed; run the same snakemake command again to have it made again")
    elif damaged:
        print("To have what is damaged made again: python -m nanochat.verify --repair")
    sys.exit(1 if damaged and not args.repair else 0)


def is_intact(manifest: Path) -> bool:
    """Check all files of a manifest, and say what is wrong with each that is not as it should be."""
    try:
        artefact = open_verified(manifest)
    except UserError as error:
        print(error)
        return False
    intact = True
    for name in artefact.files:
        try:
            artefact.path(name)
        except UserError as error:
            print(error)
            intact = False
    return intact


if __name__ == "__main__":
    main()
