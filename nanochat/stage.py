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
from nanochat.manifest import describe, identities, open_verified, publish, read_record, republish
from nanochat.storage import explain, make_folder, storage_errors, sweep, sync

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
        self.found = self.input_identities()  # before anything of them is read
        self.found_record = read_record(manifest)
        with storage_errors(self.manifest):
            make_folder(self.folder)
            sweep(self.folder)

    def is_done(self) -> bool:
        """Whether the same work, from the same inputs, is in the folder already. Then it is published again, in seconds."""
        if not republish(self.manifest, specification=self.specification, inputs=self.found):
            self.withdraw()
            return False
        log.info(
            f"{self.folder}: same inputs, same specification, same bits: published again. To redo it, delete the folder (of a "
            "training, its commits in resume/ too)."
        )
        return True

    def withdraw(self) -> None:
        """Before files are replaced, take back a manifest that names them as they were: it would name some of them wrongly."""
        if self.manifest.exists():
            with storage_errors(self.manifest):
                self.manifest.unlink(missing_ok=True)
                sync(self.folder)

    def input_identities(self) -> dict[str, str]:
        return identities(self.inputs)

    def publish(self, files: Sequence[str], *, results: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        try:
            self.refuse_other_inputs()
            self.refuse_other_bytes(files)
            self.write_manifest(files, results, record or {})
        except FileNotFoundError as error:  # a declared output, such as a page, which Snakemake deletes before its job
            raise UserError(
                f"{error.filename}: vanished before this stage was published. Another Snakemake that is to make it again does "
                "that: run the same command again when it has finished"
            ) from None
        log.info(f"{self.manifest}: published")

    def write_manifest(self, files: Sequence[str], results: Mapping[str, Any], record: Mapping[str, Any]) -> None:
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
            inputs=self.found,
            files=files,
            results=results,
            record={**defaults, **record},
        )

    def refuse_other_inputs(self) -> None:
        """UserError if something was made anew while this stage read it: the manifest would name what it is not made from."""
        there = self.input_identities()
        if changed := [str(self.inputs[name]) for name, found in self.found.items() if there[name] != found]:
            raise UserError(
                f"{self.folder}: while this stage worked, another program replaced what it reads ({', '.join(changed)}), so "
                "nothing was published. Another Snakemake, with another configuration? Run the same command again when it has "
                "finished"
            )

    def refuse_other_bytes(self, files: Sequence[str]) -> None:
        """UserError if somebody published this very work meanwhile, and it came out otherwise. The same bytes do no harm."""
        record = read_record(self.manifest)
        theirs = record.get("manifest", {})
        wanted = {"specification": dict(self.specification), "inputs": self.found}
        if record == self.found_record or any(theirs.get(key) != value for key, value in wanted.items()):
            return
        for name in files:
            here, there = describe(self.folder / name)["sha256"], theirs["files"].get(name, {}).get("sha256")
            if here != there:
                self.withdraw()  # it does not fit the files any more
                raise UserError(
                    f"{self.folder / name}: not deterministic. {platform.node()} and {record.get('host', 'another machine')} "
                    f"made it at once, to the same specification and from the same inputs: sha256 is {here} here and {there} "
                    "there. Neither is kept. Let one Snakemake work here at a time, and run the same command again"
                )


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
    except OSError as error:
        words = explain(error, Path(error.filename or "."))  # of a file that was written past `storage_errors`
        if words is None:
            raise
        Attempt.from_environment().failed(words)
        sys.exit(f"error: {words}")
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
