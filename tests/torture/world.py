"""A small world: every stage from download to report through the real Snakemake, and what must come out of it in every bit.

    code = copy_code(folder / "code")                       a copy that nobody edits meanwhile
    golden = make_golden(World(folder / "golden", code))    an undisturbed run
    world = World(folder / "pass", code)                    the same configuration in an empty folder
    golden.differences(world)                               [] if what came out there is what came out here

Compared is every file under results/ and resources/, by its sha256, but for what is listed in ALLOWED with the reason; so are
the weights, the optimizer's state and the metrics in the last commit of every training. base_train runs on two ranks, the other
stages on one, each with one thread.

Covered: files that differ, are missing, or are there that should not be; temporary files that killed programs left are counted.
Not covered: the words of the report (its figures and what it was made from are compared).
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from project import LINKED, QUICK, ROOT, Project

from nanochat.manifest import sha256

RUN = "results/tiny"
TRAININGS = ("base_train", "mid_train", "sft")
# every stage in the order of the DAG, and the seconds that it takes, about, on an idle core: random moments are drawn from them
SECONDS = {
    "download": 6.5,
    "tokenizer": 2.0,
    "tokens/pretrain": 2.0,
    "tokens/mid_train": 1.2,
    "tokens/sft": 1.2,
    "tokens/core": 1.0,
    "preflight": 8.0,
    "base_train": 8.0,
    "base_eval": 2.6,
    "mid_train": 4.0,
    "chat_eval/mid_train": 2.8,
    "sft": 3.5,
    "chat_eval/sft": 2.8,
    "trace": 6.5,
    "report": 3.2,
}
DOWNLOAD = "download"  # seven files, in resources/
STAGES = tuple(stage for stage in SECONDS if stage != DOWNLOAD)
OPTIONS = ("--max-threads", "1", "--set-resources", "base_train:ranks=2")

CONVERSATIONS = {"task": "smoltalk", "split": "test", "rows": 40}
SMALL = QUICK | {
    "download.train_shards": 1,
    "tokenizer.shards": 1,
    "tokenizer.vocab_size": 512,
    "tokenizer.max_characters": 200_000,
    "tokens.sequence_len": 64,
    "base_train.total_batch_tokens": 512,
    "base_train.steps": 30,
    "base_train.eval_every": 10,
    "base_train.eval_tokens": 1024,
    "base_train.commit_every": 3,
    "base_eval.tasks": ["world_towns", "world_recall", "world_schema"],
    "base_eval.eval_tokens": 1024,
    "base_eval.samples": ["The"],
    "mid_train.mixture": [{"task": "smoltalk", "rows": 150}, {"task": "identity", "epochs": 1.0}],
    "mid_train.validation": [CONVERSATIONS],
    "mid_train.total_batch_tokens": 512,
    "mid_train.epochs": 0.4,
    "mid_train.eval_every": 8,
    "mid_train.eval_tokens": 1024,
    "mid_train.commit_every": 4,
    "sft.mixture": [{"task": "smoltalk", "rows": 100}],
    "sft.validation": [CONVERSATIONS],
    "sft.total_batch_tokens": 512,
    "sft.epochs": 1.5,
    "sft.eval_tokens": 1024,
    "sft.commit_every": 3,
    "chat_eval.tasks": ["arc_easy", "gsm8k"],
    "trace.step_tokens": 32,
}

# what may differ, and why
ALLOWED = {
    "*record.json": "how something was made: times, host, segments",
    f"{RUN}/resume/*/claims/*": "who worked on a stage",
    f"{RUN}/resume/*attempts.jsonl": "the history of a stage: one line for each attempt",
    f"{RUN}/resume/*status.json": "how far an attempt came, and how fast",
    f"{RUN}/resume/*stop.json": "requests to stop",
    f"{RUN}/resume/*/step_*": "commits: their state tells times, and a stop leaves one at a step of its own; see `last_commit`",
    f"{RUN}/logs/*": "what programs said",
    f"{RUN}/benchmarks/*": "seconds",
    f"{RUN}/report/report.md": "tells times and segments",
    f"{RUN}/report/report.html": "tells times and segments",
    f"{RUN}/report/manifest.json": "holds the sha256 of these two; the rest of it is compared by `report`",
    "results/.verified.json": "remembers times of files",
}
TEMPORARY = re.compile(r"(^|/)\.[^/]+\.(tmp-[^/]+|\d+\.\d+)$")  # atomic_path, commits; write_whole of nanochat.jobs.attempt


class World(Project):
    """A folder with links to a copy of the code, and the small configuration."""

    def __init__(self, folder: Path, code: Path):
        self.folder, self.code = folder, code
        folder.mkdir(parents=True)
        for name in LINKED:
            (folder / name).symlink_to(code / name)
        self.configure_as_shipped(SMALL)

    def command(self, *arguments: str, config: str = "my.yaml") -> list[str]:
        return [*super().command(*arguments, config=config), *OPTIONS]

    def start(self, *arguments: str) -> subprocess.Popen:
        """Run it in a session of its own, so that all of it can be killed at once. What it says is added to driver.log."""
        with open(self.folder / "driver.log", "a") as log:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_published(self, stage: str) -> bool:
        return (self.folder / RUN / stage / "manifest.json").exists()

    def kept(self) -> set[str]:
        """What a kill cannot take any more: published stages and files, commits, finished parts of evaluations."""
        published = {stage for stage in STAGES if self.is_published(stage)}
        downloads = {str(path) for path in (self.folder / "resources").glob("tiny_world/**/*.manifest.json")}
        resume = self.folder / RUN / "resume"
        return published | downloads | {str(path) for path in [*resume.glob("*/step_*"), *resume.glob("**/part_*.json")]}

    def state(self, stage: str) -> Path:
        return self.folder / RUN / "resume" / stage


@dataclass(frozen=True)
class Golden:
    """What an undisturbed run made: file -> sha256."""

    files: dict[str, str]

    def differences(self, world: World) -> list[str]:
        """What came out otherwise, in words; [] if every bit is the same."""
        found = fingerprint(world)
        missing = [f"{name}: is missing" for name in sorted(self.files.keys() - found.keys())]
        surplus = [f"{name}: should not be there" for name in sorted(found.keys() - self.files.keys())]
        other = [f"{name}: differs" for name in sorted(self.files.keys() & found.keys()) if self.files[name] != found[name]]
        return [*missing, *surplus, *other, *inexact(world)]


def copy_code(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in LINKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def make_golden(world: World) -> Golden:
    """Run a world to its end, undisturbed."""
    assert world.start().wait() == 0, (world.folder / "driver.log").read_text(errors="replace")
    assert world.record("base_train")["world_size"] == 2
    return Golden(fingerprint(world))


def fingerprint(world: World) -> dict[str, str]:
    """File -> sha256, of all that must come out the same."""
    found = {name: sha256(world.folder / name) for name in files(world) if not is_temporary(name) and not is_allowed(name)}
    return found | last_commits(world) | report(world)


def files(world: World) -> list[str]:
    paths = (path for top in ("results", "resources") for path in (world.folder / top).rglob("*"))
    return sorted(str(path.relative_to(world.folder)) for path in paths if path.is_file())


def is_allowed(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in ALLOWED)


def is_temporary(name: str) -> bool:
    return bool(TEMPORARY.search(name)) or "/.step_" in name


def leftovers(world: World) -> list[str]:
    """Temporary files that nobody will ever read."""
    return [name for name in files(world) if is_temporary(name)]


def resumptions(world: World) -> int:
    """How often a training went on from a commit of an earlier attempt."""
    return sum(len(world.record(stage)["segments"]) - 1 for stage in TRAININGS)


def last_commits(world: World) -> dict[str, str]:
    found = {}
    for stage in TRAININGS:
        commits = sorted(world.state(stage).glob("step_????????"))
        for name in ("model.safetensors", "optimizer.safetensors", "metrics.jsonl") if commits else ():
            found[f"last commit of {stage}: {commits[-1].name}/{name}"] = sha256(commits[-1] / name)
    return found


def report(world: World) -> dict[str, str]:
    """What the report was made from and which figures are in it."""
    manifest = world.manifest("report")
    figures = {name: described["sha256"] for name, described in manifest["files"].items() if name.endswith(".png")}
    made_from = {"specification": manifest["specification"], "inputs": manifest["inputs"], "figures": figures}
    return {
        "the report's manifest": json.dumps(made_from, sort_keys=True),
        "files of the report": str(sorted(manifest["files"])),
    }


def inexact(world: World) -> list[str]:
    """Trainings whose own record denies that they are exact, or whose segments do not follow one another; manifests that
    are not what their record holds a copy of; a report that misses a stage."""
    found = []
    for stage in TRAININGS:
        record, steps = world.record(stage), world.manifest(stage)["results"]["steps"]
        ends = [segment["to_step"] for segment in record["segments"]]
        if not record["is_exact"]:
            found.append(f"{stage}: says that it is not exact")
        if [segment["from_step"] for segment in record["segments"]] != [0, *ends[:-1]] or ends[-1] != steps:
            found.append(f"{stage}: its segments do not follow one another: {record['segments']}")
    found += [f"{stage}: its record is of another manifest" for stage in STAGES if of_another_manifest(world, stage)]
    if "has not finished" in (world.folder / RUN / "report" / "report.md").read_text():
        found.append("report: misses a stage")
    return found


def of_another_manifest(world: World, stage: str) -> bool:
    manifest, copy = world.manifest(stage), world.record(stage)["manifest"]
    return any(copy[key] != manifest[key] for key in ("specification", "inputs", "files", "results"))
