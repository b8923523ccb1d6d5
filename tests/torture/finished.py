"""A finished quick project, the programs that made it, and copies of it in which something can be broken.

The programs are those of the rules, with the arguments that the rules give them: Snakemake prints them in a dry run.
"""

import os
import random
import shlex
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from project import Project

from nanochat.manifest import MANIFEST, record_path, sha256
from torture.zygote import Ended, Job, Zygote

TWO_RUNS = {"runs": {"tiny": {}, "again": {"base_train": "tiny", "mid_train": "tiny", "sft": "tiny"}}}
TREES = ("results", "resources")
NO_ARTEFACTS = ("logs", "benchmarks", "claims")  # folders of what only tells people of runs


class OneThread(Project):
    """With one thread a job, as in the zygote: another number of them changes the last digits of sums, and so the results."""

    def command(self, *arguments: str, **options: str) -> list[str]:
        return [*super().command(*arguments, **options), "--max-threads", "1"]


def make_finished(folder: Path) -> Project:
    """Two runs that share their models, and their comparison: in a minute."""
    project = OneThread(folder)
    project.configure(TWO_RUNS)
    project.run()
    return project


@dataclass(frozen=True)
class Program:
    """A program of a rule."""

    name: str  # the folder, or file, that it publishes
    path: str
    arguments: tuple[str, ...]
    manifest: Path
    state: Path | None

    @property
    def folder(self) -> Path:
        return self.manifest.parent

    def clear(self, tree: Path, *, keep_state: bool = False) -> None:
        """Remove what it made, so that it works again; with its state, from the beginning."""
        if self.manifest.name == MANIFEST:
            shutil.rmtree(tree / self.folder, ignore_errors=True)
        else:
            for path in (tree / self.name, tree / self.manifest, record_path(tree / self.manifest)):
                path.unlink(missing_ok=True)
        if self.state and not keep_state:
            shutil.rmtree(tree / self.state, ignore_errors=True)


def programs(project: Project) -> list[Program]:
    """Every program that made the project, in the order of their names."""
    text = project.run("-n", "--printshellcmds", "--forceall")
    lines = [line for line in text.splitlines() if line.startswith("Shell command: python ") and "--manifest" in line]
    return sorted(map(read_command, lines), key=lambda program: program.name)


def read_command(line: str) -> Program:
    words = shlex.split(line.removeprefix("Shell command: ").partition(" 2>&1 | ")[0])
    start = max(n for n, word in enumerate(words) if word.startswith("workflow/scripts/"))
    manifest = Path(words[words.index("--manifest") + 1])
    state = Path(words[words.index("--state") + 1]) if "--state" in words else None
    name = str(manifest.parent) if manifest.name == MANIFEST else str(manifest).removesuffix(f".{MANIFEST}")
    return Program(name, words[start], tuple(words[start + 1 :]), manifest, state)


# -- copies ------------------------------------------------------------------------------------------------------------------


def link_tree(source: Path, target: Path) -> Path:
    """A copy in milliseconds: hard links, as every writer here makes a new file instead of changing one."""
    for name in TREES:
        shutil.copytree(
            source / name, target / name, copy_function=os.link, symlinks=True, ignore=shutil.ignore_patterns("logs")
        )
    for name in ("config", "workflow", "nanochat"):
        (target / name).symlink_to((source / name).resolve())
    return target


def files_of(folder: Path) -> list[Path]:
    """Relative paths of all artefacts: no logs, benchmarks and the like."""
    paths = [path for name in TREES for path in (folder / name).rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path.relative_to(folder) for path in paths if is_artefact(path.relative_to(folder)))


def is_artefact(path: Path) -> bool:
    tells_only = path.name in ("attempts.jsonl", "status.json", "stop.json", "lease.json") or path.suffix in (".log", ".tsv")
    return not tells_only and not set(NO_ARTEFACTS) & set(path.parts)


def digests(folder: Path) -> dict[str, str]:
    return {str(path): sha256(folder / path) for path in files_of(folder)}


class Zygotes:
    """One for each thread that asks."""

    def __init__(self, folder: Path):
        self.folder, self.own, self.all = folder, threading.local(), []

    def run(self, job: Job, folder: Path) -> Ended:
        if not hasattr(self.own, "zygote"):
            self.own.zygote = Zygote(self.folder / f"zygote_{threading.get_ident()}")
            self.all.append(self.own.zygote)
        return self.own.zygote.run(job, folder)

    def __enter__(self) -> "Zygotes":
        return self

    def __exit__(self, *_: object) -> None:
        for zygote in self.all:
            zygote.__exit__(None, None, None)


def generator(*words: object) -> random.Random:
    return random.Random(" ".join(map(str, words)))
