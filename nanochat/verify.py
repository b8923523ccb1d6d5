"""Check everything that was published against its manifest: python -m nanochat.verify [--repair] [FOLDER ...]

Without folders: all of results/ and resources/, with the commits of trainings and the finished tasks of evaluations that are
kept there. Every byte is read. With --repair, the manifest and the record of what is damaged are removed, so that the next run
of the same snakemake command that needs it makes exactly that again; a damaged commit, or kept task, is removed itself.

Exit code: 0 all is as it was published, or was repaired; 1 something is damaged; 2 something could not be checked or removed.

Covered: files that are gone, truncated, extended, exchanged or changed in one bit; manifests and records, too. Nothing outside
the given folders is touched: links to folders in them are not followed, but named. Not damage: a manifest or a record that is
not there, and what was made from something that is no longer here as it was, which is told. Not covered: a running stage may
write while this reads; what has vanished by the end is passed over.
"""

import argparse
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.manifest import as_json, read_record, record_path, sealed, write_json
from nanochat.survey import EVERYTHING, Item, Survey, survey_of
from nanochat.text import visible


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nanochat.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="default: results resources")
    parser.add_argument("--repair", action="store_true", help="remove the manifests of what is damaged")
    parser.add_argument("--json", action="store_true", help="say what was found as JSON")
    options = parser.parse_args(arguments)
    if missing := [str(folder) for folder in options.folders if not folder.is_dir()]:
        parser.error(visible(f"{', '.join(missing)}: no such folder"))
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a pipe may know fewer characters than a name
    try:
        survey = survey_of(options.folders or EVERYTHING)
    except KeyboardInterrupt:
        return 130
    done = repair(survey, options.folders) if options.repair else []
    print(as_json(report(survey, done)) if options.json else "\n".join(map(visible, tell(survey, done, options))))
    if survey.unchecked or any(not remedy.worked for remedy in done):
        return 2
    return 1 if len(survey.damaged) > len(done) else 0


# -- repair ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remedy:
    """What was done about a damaged item, and what follows."""

    name: str
    what: str
    worked: bool = True


def repair(survey: Survey, named: Iterable[Path]) -> list[Remedy]:
    """Make way for what is damaged. Results of another version stay, unless their own folder is named: they may be good."""
    named_folders = {folder.resolve() for folder in named}
    remedies = []
    for item in survey.damaged:
        if item.is_other_version and item.path.parent.resolve() not in named_folders:
            continue
        try:
            what = repair_item(item)
        except OSError as error:
            remedies.append(Remedy(item.name, f"cannot be repaired: {error.filename}: {error.strerror}", worked=False))
        else:
            remedies.append(Remedy(item.name, what))
    return remedies


def repair_item(item: Item) -> str:
    if item.kind == "task":
        item.path.unlink(missing_ok=True)
        return "removed; the task is evaluated again, unless the evaluation is finished"
    if item.kind == "commit":
        item.path.unlink(missing_ok=True)  # first: a folder without one is no commit, wherever this stops
        with suppress(FileNotFoundError):
            shutil.rmtree(item.path.parent)
        return "removed; the training goes on from the commit before it, unless it is finished"
    if item.problems.keys() == {record_path(item.path)}:
        write_json(record_path(item.path), sealed({"manifest": json.loads(item.text)}))
        return "its record was written anew from the manifest; the times in it are lost, the result is as good as before"
    if item.problems.keys() != {item.path} and not is_exchanged(item):  # else the record may publish it again
        record_path(item.path).unlink(missing_ok=True)
    item.path.unlink(missing_ok=True)
    return "its manifest was removed; the next run that needs it makes it again"


def is_exchanged(item: Item) -> bool:
    """Whether the manifest is another one than its record tells of. That may be the right one: the next run looks."""
    kept = read_record(item.path).get("manifest")
    return kept is not None and kept != json.loads(item.text)


# -- telling -----------------------------------------------------------------------------------------------------------------


def tell(survey: Survey, done: Sequence[Remedy], options: argparse.Namespace) -> Iterator[str]:
    for item in survey.damaged:
        for path, problem in item.problems.items():
            yield f"{path}: {problem}"
        if needed_by := survey.needed_by.get(item.path):
            yield f"    made from it: {', '.join(needed_by)}"
    yield from survey.unchecked
    for item, gone in survey.stale:
        yield f"{item.name}: made from {', '.join(gone)} as it is no longer here. No damage; the next run does what is due"
    for link in survey.links:
        yield f"{link}: a link to a folder, not followed; to have it checked, name it"
    yield from summary(survey)
    for remedy in done:
        yield f"{remedy.name}: {remedy.what}"
    if any(remedy.worked for remedy in done):
        yield "Now run the same snakemake command. What was made from these stays where they come out the same. A stage from"
        yield "which nothing is to be made any more has to be asked for: snakemake results/RUN/STAGE/manifest.json ..."
    kept = [item for item in survey.damaged if item.is_other_version and item.name not in {remedy.name for remedy in done}]
    if kept:
        yield (
            f"Of another version, and left alone: {kept[0].name}{f' and {len(kept) - 1} more' if len(kept) > 1 else ''}. "
            "Use the version that made it, or name its folder with --repair to have it made again"
        )
    if not options.repair and len(survey.damaged) > len(kept):
        words = " ".join(map(str, ["--repair", *options.folders]))
        yield f"To have what is damaged made again: python -m nanochat.verify {words}, and then the same snakemake command"


def summary(survey: Survey) -> Iterator[str]:
    """A line a run, with what is damaged in it; then the whole."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in survey.items:
        groups[item.group].append(item)
    for name, items in sorted(groups.items()):
        counts = []
        for kind in ("stage", "file", "commit", "task"):
            of_kind = [item for item in items if item.kind == kind]
            if of_kind:
                counts.append(f"{sum(not item.problems for item in of_kind)} of {len(of_kind)} {kind}s")
        bad = [os.path.relpath(item.name, name) for item in items if item.problems]
        yield f"{name}: {', '.join(counts)} intact" + (f"; damaged: {', '.join(bad)}" if bad else "")
    manifests = [item for item in survey.items if item.kind != "task"]
    pace = f" ({survey.num_bytes / 1e9 / survey.seconds:.1f} GB/s)" if survey.num_bytes > 1e9 else ""
    yield (
        f"{sum(not item.problems for item in manifests)} of {len(manifests)} manifests are intact: "
        f"{survey.num_files:,} files, {survey.num_bytes:,} bytes read in {survey.seconds:.1f} s{pace}"
    )


def report(survey: Survey, done: Sequence[Remedy]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "manifests": sum(item.kind != "task" for item in survey.items),
        "files": survey.num_files,
        "bytes": survey.num_bytes,
        "seconds": round(survey.seconds, 3),
        "damaged": [
            {
                "path": str(path),
                "problem": problem,
                "of": item.name,
                "kind": item.kind,
                "needed_by": survey.needed_by[item.path],
            }
            for item in survey.damaged
            for path, problem in item.problems.items()
        ],
        "unchecked": survey.unchecked,
        "links": list(map(str, survey.links)),
        "stale": [{"name": item.name, "inputs": gone} for item, gone in survey.stale],
        "repaired": [{"name": remedy.name, "what": remedy.what, "worked": remedy.worked} for remedy in done],
    }


if __name__ == "__main__":
    sys.exit(main())
