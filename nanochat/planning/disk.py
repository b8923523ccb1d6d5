"""What lies on the disk of a project, what is missing there, and whether there is room for the rest.

The layout is the workflow's: results/{run}/{stage}/manifest.json, results/{run}/resume/{stage}/, resources/{folder}/{file}.
Sizes that nobody published are estimated, and every text that is made from them says "about".
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.config import Config
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, open_verified
from nanochat.planning.plan import STAGES, TRAININGS, Known, Row
from nanochat.planning.predict import Counts, commit_bytes, counted_core, model_bytes
from nanochat.specifications import COMPARISON_VOCABULARIES

# where nothing tells the size of a file: a FineWeb-Edu shard has about 100 MB
UNKNOWN_BYTES = {"https": 100_000_000, "http": 100_000_000, "generated": 1_000_000}
TEXT_IN_PARQUET = 2.5  # bytes of text in one of a compressed shard
COMMITS_KEPT = 2


@dataclass(frozen=True)
class Need:
    """Room that something will take."""

    what: str
    folder: Path
    num_bytes: int


# -- what is there -----------------------------------------------------------------------------------------------------------


def manifest_of(config: Config, run: str, stage: str, root: Path = Path()) -> Path:
    return root / "results" / config.owner(run, stage) / stage / MANIFEST


def file_of(config: Config, key: str, root: Path = Path()) -> Path:
    return root / "resources" / config.catalogue.folder / config.catalogue.get(key).path


def look(config: Config, run: str, root: Path = Path()) -> Known:
    """What of a run is made already, and how much it holds."""
    done = frozenset(stage for stage in STAGES if is_as_specified(config, run, stage, root))
    rows: dict[str, tuple[int, int]] = {}
    core: Counts | None = None
    for stage in done:
        if not stage.startswith("tokens/"):
            continue
        try:
            results = open_verified(manifest_of(config, run, stage, root)).results
            if stage == "tokens/core":
                core = counted_core(results)
            else:
                rows[stage] = (results["train"]["rows"], results["validation"]["rows"])
        except (UserError, KeyError, TypeError):
            continue  # a damaged manifest is named by whoever checks files
    shards = {"tokenizer": config.tokenizer_shards(run), "tokens/pretrain": config.training_shards(run)}
    text = {stage: TEXT_IN_PARQUET * sum(size_of(config, key, root) for key in keys) for stage, keys in shards.items()}
    return Known(rows=rows, done=done, text_bytes=text, core=core)


def is_as_specified(config: Config, run: str, stage: str, root: Path = Path()) -> bool:
    """Whether a stage is published with the keys that it has now."""
    try:
        manifest = json.loads(manifest_of(config, run, stage, root).read_text())
        return manifest["specification"] == json.loads(config.specification(run, stage))
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return False


def missing_files(config: Config, keys: Iterable[str], root: Path = Path()) -> list[str]:
    """Catalogue keys of files that are not there, or that nobody has checked."""
    paths = {key: file_of(config, key, root) for key in keys}
    return [key for key, path in paths.items() if not (path.exists() and path.with_name(f"{path.name}.{MANIFEST}").exists())]


def absent_vocabularies(config: Config) -> list[str]:
    """Tokenizers to compare with that the catalogue does not have: not fatal, and the report says so."""
    return [key for key in COMPARISON_VOCABULARIES if key not in config.catalogue]


def missing_sources(config: Config, keys: Iterable[str]) -> list[str]:
    """A sentence for each file that is to be copied from this machine and is not there."""
    problems = []
    for key in keys:
        try:
            source = config.catalogue.get(key).source
        except UserError as error:
            problems.append(str(error))
            continue
        if source is not None and not source.is_file():
            problems.append(f"{config.catalogue.path}: {key} is to be copied from {source}, and there is no such file")
    return problems


def size_of(config: Config, key: str, root: Path = Path()) -> int:
    """Bytes of a file: as it lies there, as the catalogue says, as its source has, or about."""
    entry = config.catalogue.get(key)
    if entry.size is not None:
        return entry.size
    try:
        source = entry.source
    except UserError:
        source = None
    for path in (file_of(config, key, root), source):
        if path is not None and path.is_file():
            return path.stat().st_size
    return UNKNOWN_BYTES.get(entry.address.partition(":")[0], 0)


# -- room --------------------------------------------------------------------------------------------------------------------


def needs(config: Config, rows: Sequence[Row], keys: Iterable[str], root: Path = Path()) -> list[Need]:
    """What these stages and these downloads will add to the disk, beyond what is there."""
    found = []
    missing = missing_files(config, keys, root)
    if missing:
        size = sum(size_of(config, key, root) for key in missing)
        found.append(Need(f"{len(missing)} downloads", root / "resources", size))
    for row in rows:
        if row.is_done:
            continue
        folder = root / "results" / row.run
        if row.stage in TRAININGS:
            commits = COMMITS_KEPT * commit_bytes(row.model) - size_of_folder(folder / "resume" / row.stage)
            found.append(Need(f"{row.run}/{row.stage}: model and commits", folder, model_bytes(row.model) + max(0, commits)))
        elif row.stage.startswith("tokens/") and row.prediction and row.prediction.tokens:
            a_token = 2 if row.stage in ("tokens/pretrain", "tokens/core") else 3  # uint16, and a byte of mask
            found.append(Need(f"{row.run}/{row.stage}", folder, a_token * row.prediction.tokens))
    return found


def space_problems(found: Sequence[Need]) -> list[str]:
    """A sentence for every disk that has too little room."""
    problems = []
    for folder, wanted in by_disk(found).items():
        total, free = sum(need.num_bytes for need in wanted), shutil.disk_usage(folder).free
        if total > free:
            largest = max(wanted, key=lambda need: need.num_bytes)
            problems.append(
                f"about {gigabytes(total)} are needed on {folder.absolute()}, and {gigabytes(free)} are free (the most, "
                f"{gigabytes(largest.num_bytes)}, for {largest.what}). Make room, or make results/ and resources/ links to a "
                "larger disk"
            )
    return problems


def by_disk(found: Sequence[Need]) -> dict[Path, list[Need]]:
    """Needs by a folder of the disk that they are on."""
    disks: dict[int, tuple[Path, list[Need]]] = {}
    for need in found:
        folder = existing(need.folder)
        disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(need)
    return dict(disks.values())


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists():
        folder = folder.absolute().parent
    return folder


def size_of_folder(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # a commit that was removed meanwhile
    return total


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
