"""What every stage program does around its work: start, look whether it is done already, publish, and fail in words."""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.jobs import offline
from nanochat.jobs.attempt import Attempt, follow_launcher
from nanochat.manifest import identity, open_verified, publish, republish

log = logging.getLogger("nanochat")

RECORDED_PACKAGES = ("torch", "numpy", "pyarrow", "tiktoken", "rustbpe", "safetensors", "snakemake")


class Stage:
    """One run of a stage program, from its specification and inputs to its manifest."""

    def __init__(self, manifest: Path, *, specification: Mapping[str, Any], inputs: Mapping[str, Path]):
        self.manifest = manifest
        self.folder = manifest.parent
        self.specification = specification
        self.inputs = inputs
        self.started = now()
        self.folder.mkdir(parents=True, exist_ok=True)

    def is_done(self) -> bool:
        """Whether the same work, from the same inputs, is in the folder already. Then it is published again, in seconds."""
        if not republish(self.manifest, specification=self.specification, inputs=self.inputs):
            return False
        log.info(
            f"{self.folder}: same inputs, same specification, same bits: published again. To redo it, delete the folder (of a "
            "training, its commits in resume/ too)."
        )
        return True

    def input_identities(self) -> dict[str, str]:
        return {name: identity(path) for name, path in self.inputs.items()}

    def publish(self, files: Sequence[str], *, results: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        finished = now()
        defaults = {
            "started": self.started.isoformat(),
            "finished": finished.isoformat(),
            "seconds": (finished - self.started).total_seconds(),
            "host": platform.node(),
            "versions": versions(),
            "code": code_revision(),
        }
        publish(
            self.manifest,
            specification=self.specification,
            inputs=self.inputs,
            files=files,
            results=results,
            record={**defaults, **(record or {})},
        )
        log.info(f"{self.manifest}: published")


def rule_of(stage: str) -> str:
    """The rule that makes a stage: tokens_sft makes tokens/sft, chat_eval makes both of its folders."""
    return "chat_eval" if stage.startswith("chat_eval/") else stage.replace("/", "_")


def stage_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specification", type=json.loads, required=True, help="the keys that change the result, as JSON")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest to publish; its folder holds the files")
    return parser


def by_key(manifests: Sequence[Path]) -> dict[str, Path]:
    """Manifests of downloaded files, by the file's key in the catalogue."""
    return {open_verified(manifest).specification["key"]: manifest for manifest in manifests}


def verified_files(manifests: Mapping[str, Path]) -> dict[str, Path]:
    """The downloaded files themselves, each verified; same names as the manifests."""
    artefacts = {key: open_verified(manifest) for key, manifest in manifests.items()}
    return {key: artefact.path(next(iter(artefact.files))) for key, artefact in artefacts.items()}


def run_program(main: Callable[[], None]) -> None:
    """Run a program: log to stderr, say an error in words rather than in a traceback, exit 1 on one. Ends with its launcher."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    offline.name_callers()
    follow_launcher()
    try:
        main()
    except UserError as error:
        Attempt.from_environment().failed(str(error))
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def now() -> datetime:
    return datetime.now(UTC)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_revision() -> str | None:
    """The commit this code is at, with `+` if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(("git", *words), cwd=here, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
