"""A copy of the workflow in a folder of its own, and ways to run it: for the tests of the DAG."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import warm
import yaml

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
STARTS_NOTHING = {"-n", "--dag", "--lint", "--list-rules"}
LINKED = ("Snakefile", "workflow", "profiles", "config", "nanochat")

# the tiny world with a model too small to learn it: every stage runs, in seconds
QUICK = {
    "base_train.depth": 1,
    "base_train.width": 32,
    "base_train.heads": 2,
    "base_train.steps": 6,
    "base_train.eval_every": 3,
    "base_train.eval_tokens": 4096,
    "base_train.commit_every": 2,
    "base_eval.max_per_task": 3,
    "base_eval.sample_tokens": 4,
    "base_eval.eval_tokens": 4096,
    "mid_train.epochs": 0.02,
    "mid_train.eval_every": 0,
    "mid_train.eval_tokens": 4096,
    "sft.epochs": 0.02,
    "sft.eval_every": 0,
    "sft.eval_tokens": 4096,
    "chat_eval.max_per_task": 3,
    "chat_eval.max_new_tokens": 8,
    "chat_eval.spelling_items": 3,
}


class Project:
    """A folder with links to the workflow and a configuration of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in LINKED:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(ROOT / name)

    def configure(self, changes: dict | None = None) -> None:
        """Write my.yaml: the tiny world, then QUICK, then `changes` ({"sft.epochs": 2})."""
        self.configure_as_shipped(QUICK | (changes or {}))

    def configure_as_shipped(self, changes: dict, *, base: str = "tiny") -> None:
        """Write my.yaml: a shipped configuration with `changes`."""
        config = yaml.safe_load((ROOT / "config" / f"{base}.yaml").read_text())
        for key, value in changes.items():
            place = config
            *sections, last = key.split(".")
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        self.write(yaml.safe_dump(config, sort_keys=False))

    def write(self, text: str) -> None:
        (self.folder / "my.yaml").write_text(text)

    def command(self, *arguments: str, config: str = "my.yaml") -> list[str]:
        return [SNAKEMAKE, *arguments, "--profile", "profiles/laptop", "--cores", "2", "--configfile", config]

    def snakemake(self, *arguments: str, config: str = "my.yaml", timeout: int = 900) -> subprocess.CompletedProcess:
        if STARTS_NOTHING.intersection(arguments) and type(self) is Project:
            return self.look(*arguments, config=config, timeout=timeout)
        return subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def look(self, *arguments: str, config: str = "my.yaml", timeout: int = 900) -> subprocess.CompletedProcess:
        """The same for a command that starts no job, in a fifth of the time."""
        return warm.snakemake(self.command(*arguments, config=config), self.folder, timeout=timeout)

    def run(self, *arguments: str, **options) -> str:
        """Run it, and fail with what it said if it failed."""
        done = self.snakemake(*arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen:
        """Run it in a session of its own, so that all of it can be killed at once."""
        with open(self.folder / "killed.log", "w") as log:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rule -> number of jobs that a dry run would do, `all` and `download` aside."""
        text = self.run("-n", *arguments)
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats:")[1].split("total")[0]
        jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        return {name: count for name, count in jobs.items() if name not in ("all", "download")}

    def manifest(self, stage: str, run: str = "tiny") -> dict:
        return json.loads((self.folder / "results" / run / stage / "manifest.json").read_text())

    def record(self, stage: str, run: str = "tiny") -> dict:
        return json.loads((self.folder / "results" / run / stage / "record.json").read_text())


def copy_of(finished: Path, folder: Path) -> Project:
    """A finished project once more, Snakemake's own bookkeeping included: nothing is to be done in it."""
    shutil.copytree(finished, folder, symlinks=True)
    return Project(folder)


def kill_all(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition, *, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
