"""Change every time stamp, copy everything, delete at random: what is still there is not done again, and the end is the same.

What has to be made again after a deletion: a stage of which a data file, or the record, is gone. Everything else need not: it
stays as it is, or is published again, which leaves its record as it was. A stage that did work has a new record. Three are no
such stages: the report and the comparison, which are written anew whenever something was, and the trace. Snakemake has to know
their pages, to show them, and deletes them before it starts the job. They take seconds.

A stage that is gone, and from which nothing more has to be made, stays away until somebody asks for it: so it is asked for.

Not covered: results of other machines or versions, whose bytes may be others.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from project import ROOT, Project

from nanochat.manifest import DIGEST, MANIFEST, RECORD, open_verified, record_path, sealed, write_json
from torture.board import Row, row
from torture.finished import TREES, files_of, generator, make_finished

PART = "stamps"
YEAR_S = 365 * 86_400
TOLD = ("report", "comparison")  # made from the records, and so from their times, too
SHOWN = (*TOLD, "trace")  # with pages that Snakemake deletes
LAST_WORDS = 400


def rows(size: int, *, seed: int, folder: Path, say: Callable[[str], None]) -> list[Row]:
    say("making a finished run")
    finished = make_finished(folder / "finished")
    return rows_of(finished, size, seed=seed, folder=folder / "trials", say=say)


def rows_of(finished: Project, size: int, *, seed: int, folder: Path, say: Callable[[str], None]) -> list[Row]:
    num_subsets, stamped, copied, purged = max(1, size // 10), [], [], []
    for number in range(3):
        say(f"time stamps {number + 1} of 3")
        stamped.append(guarded(random_stamps, finished, folder / f"stamps_{number}", generator(seed, "stamps", number)))
    for name, copy in COPIES.items():
        say(f"copied {name}")
        copied.append(guarded(copy, finished, folder / f"copy_{len(copied)}"))
    for number in range(num_subsets):
        say(f"random deletions {number + 1} of {num_subsets}")
        purged.append(guarded(random_purge, finished, folder / f"purge_{number}", generator(seed, "purge", number), say=say))
    return [
        row(PART, "after all time stamps were changed by up to a year, there is nothing to be done", stamped),
        row(PART, "copied elsewhere, with new time stamps, nothing is done again", copied, copies=list(COPIES)),
        row(
            PART,
            "with the base model gone and the final one there, nothing is trained",
            [guarded(no_base, finished, folder / "no_base")],
        ),
        row(PART, "after random deletions only what is needed is made again, and the results are the same", purged),
        row(
            PART,
            "with the content of a manifest changed, there is nothing to be done",
            [guarded(other_content, finished, folder / f"content_{n}", generator(seed, n)) for n in range(2)],
            is_control=True,
        ),
    ]


def guarded(
    trial: Callable[..., str | None], finished: Project, folder: Path, *arguments: object, **options: object
) -> str | None:
    """What is wrong, or None; an exception is a trial that failed. The copy is removed if nothing is wrong."""
    try:
        wrong = trial(finished, folder, *arguments, **options)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong is None:
        shutil.rmtree(folder)
    return wrong and f"{folder.name}: {wrong}"


# -- time stamps and copies --------------------------------------------------------------------------------------------------


def random_stamps(finished: Project, folder: Path, rng: random.Random) -> str | None:
    project = copy_of(finished, folder)
    change_stamps(project.folder, rng)
    return nothing_planned(project)


def change_stamps(folder: Path, rng: random.Random) -> None:
    """Files and folders, into the past and the future."""
    now = time.time()
    paths = [path for name in TREES for path in [folder / name, *(folder / name).rglob("*")]]
    for path in sorted(paths, reverse=True):  # what is in a folder before the folder
        moment = now + rng.uniform(-YEAR_S, YEAR_S)
        os.utime(path, (moment, moment), follow_symlinks=False)


def copied_whole(finished: Project, folder: Path) -> str | None:
    """Everything, Snakemake's own notes as well, as `cp -r` does."""
    return nothing_planned(copy_of(finished, folder, keeps_stamps=False))


def copied_without_notes(finished: Project, folder: Path) -> str | None:
    """results/ and resources/ alone: every stage is looked at, and published again."""
    project = copy_of(finished, folder, keeps_stamps=False, notes=False)
    return run_and_compare(project, finished, allowed=set())


COPIES = {"whole": copied_whole, "without Snakemake's notes": copied_without_notes}


def copy_of(finished: Project, folder: Path, *, keeps_stamps: bool = True, notes: bool = True) -> Project:
    project = type(finished)(folder)
    copy = shutil.copy2 if keeps_stamps else shutil.copyfile
    for name in (*TREES, *([".snakemake"] if notes else [])):
        shutil.copytree(finished.folder / name, folder / name, copy_function=copy, symlinks=True)
    shutil.copy2(finished.folder / "my.yaml", folder / "my.yaml")
    return project


def nothing_planned(project: Project) -> str | None:
    planned = project.planned()
    return f"to be done: {planned}" if planned else None


def no_base(finished: Project, folder: Path) -> str | None:
    """The base model purged, with its commits: what was made from it is there, and nobody asked for it."""
    project = copy_of(finished, folder)
    shutil.rmtree(folder / "results/tiny/base_train")
    shutil.rmtree(folder / "results/tiny/resume/base_train")
    planned = project.planned()
    return f"to be done: {planned}" if planned.keys() & {"base_train", "mid_train", "sft"} else None


def other_content(finished: Project, folder: Path, rng: random.Random) -> str | None:
    """Negative control: what Snakemake compares is the content of manifests."""
    project = copy_of(finished, folder)
    stage = rng.choice(("tokens/pretrain", "tokenizer", "mid_train"))
    manifest = folder / "results/tiny" / stage / MANIFEST
    content = json.loads(manifest.read_text())
    write_json(
        manifest, sealed({key: value for key, value in content.items() if key not in ("results", DIGEST)} | {"results": {}})
    )
    return nothing_planned(project)


# -- deletions ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage, or a download, of the finished project."""

    manifest: Path  # relative, as all paths here
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return str(self.manifest.parent) if self.manifest.name == MANIFEST else str(self.manifest).removesuffix(f".{MANIFEST}")

    @property
    def is_told(self) -> bool:
        return self.manifest.parent.name in TOLD

    @property
    def is_shown(self) -> bool:
        return self.manifest.parent.name in SHOWN

    def is_whole(self, folder: Path) -> bool:
        """Whether it need not be made again."""
        return all((folder / path).exists() for path in (*self.files, record_path(self.manifest)))

    def started(self, folder: Path) -> str | None:
        path = folder / record_path(self.manifest)
        return json.loads(path.read_text())["started"] if path.exists() else None


def stages_of(folder: Path) -> list[Stage]:
    found = []
    for path in files_of(folder):
        if path.name.endswith(MANIFEST) and "resume" not in path.parts:
            files = tuple(path.parent / name for name in open_verified(folder / path).files)
            found.append(Stage(path, files))
    return found


def random_purge(
    finished: Project, folder: Path, rng: random.Random, *, say: Callable[[str], None] = lambda _: None
) -> str | None:
    project = copy_of(finished, folder)
    doomed = choose(folder, rng)
    say("  without " + ", ".join(map(str, doomed)))
    for path in doomed:
        remove(folder / path)
    stages = [stage for stage in stages_of(finished.folder)]
    allowed = {stage.name for stage in stages if not stage.is_whole(folder)}
    if any((folder / stage.manifest).exists() and not has_files(stage, folder) for stage in stages):
        repair(folder)
    wrong = run_and_compare(project, finished, allowed=allowed)
    return wrong and f"without {', '.join(map(str, doomed))}: {wrong}"


def has_files(stage: Stage, folder: Path) -> bool:
    return all((folder / path).exists() for path in stage.files)


def choose(folder: Path, rng: random.Random) -> list[Path]:
    """What a purge, or a person, may delete: a few of anything."""
    files, stages = files_of(folder), stages_of(folder)
    of_stages = [path for path in files if "resume" not in path.parts]
    kinds: list[Sequence[Path]] = [
        [path for path in of_stages if path.name.endswith(MANIFEST)],
        [path for path in of_stages if path.name.endswith(RECORD)],
        [path for path in of_stages if not path.name.endswith((MANIFEST, RECORD))],
        sorted({stage.manifest.parent for stage in stages if stage.manifest.parts[0] == "results"}),
        [path for path in files if "resume" in path.parts],
        [
            Path(name)
            for name in (
                "results/tiny/logs",
                "results/tiny/resume",
                ".snakemake",
                "results/.verified.json",
                "results/tiny/benchmarks",
            )
        ],
    ]
    chosen = [rng.choice(kind) for kind in rng.choices(kinds, weights=(4, 2, 4, 1, 1, 2), k=rng.randint(1, 8))]
    if rng.random() < 0.15:
        chosen += rng.sample(of_stages, len(of_stages) // 2)
    return sorted(set(chosen))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def repair(folder: Path) -> None:
    command = [sys.executable, "-m", "nanochat.verify", "--repair"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"verify --repair ended with {done.returncode}: {(done.stdout + done.stderr)[-LAST_WORDS:]}")


def run_and_compare(project: Project, finished: Project, *, allowed: set[str]) -> str | None:
    """Run to the end: the results are those of the finished project, and only `allowed` stages did any work."""
    done = project.snakemake()
    if done.returncode:
        return f"Snakemake ended with {done.returncode}: {(done.stdout + done.stderr)[-LAST_WORDS:]}"
    if again := nothing_planned(project):
        return f"after it was done, {again}"
    return compare(project, finished, allowed=allowed) or ask_for_the_rest(project, finished)


def ask_for_the_rest(project: Project, finished: Project) -> str | None:
    """What nobody needed comes out the same when it is asked for."""
    stages = stages_of(finished.folder)
    gone = [str(stage.manifest) for stage in stages if not (project.folder / stage.manifest).exists()]
    if not gone:
        return None
    project.run(*gone)
    if still := [name for name in gone if not (project.folder / name).exists()]:
        return f"asked for, and not made: {', '.join(still)}"
    return next((wrong for stage in stages if (wrong := differs(stage, project.folder, finished.folder))), None)


def compare(project: Project, finished: Project, *, allowed: set[str]) -> str | None:
    stages = stages_of(finished.folder)
    worked = {stage.name for stage in stages if not stage.is_shown and has_worked(stage, project.folder, finished.folder)}
    if worked - allowed:
        return f"made again without need: {', '.join(sorted(worked - allowed))}"
    return next((wrong for stage in stages if (wrong := differs(stage, project.folder, finished.folder))), None)


def has_worked(stage: Stage, folder: Path, finished: Path) -> bool:
    """Whether it did more than to publish again what was there: then it has a new record."""
    return stage.started(folder) not in (None, stage.started(finished))


def differs(stage: Stage, folder: Path, finished: Path) -> str | None:
    """What is wrong with a stage that is there."""
    manifest = folder / stage.manifest
    if not manifest.exists():
        return None
    if not stage.is_told:
        return None if manifest.read_bytes() == (finished / stage.manifest).read_bytes() else f"{stage.name}: another result"
    page = folder / stage.manifest.parent / "report.md"
    return f"{page}: has gaps" if page.exists() and "has not finished" in page.read_text() else None
