"""Models on disk, and commits: the whole state of a training, from which it goes on as if nothing had happened.

A commit is a folder `step_00000250/` with the weights, the optimizer's state, the metrics so far and the loop's own few
numbers. It is written under another name, synced, and renamed into place, so that it is there whole or not at all. The last two
are kept: if the newest is damaged, the one before it serves. A commit carries the identity of its training (specification,
inputs, generation of the code) and is refused by any other, in words.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nanochat.agreement import fingerprint
from nanochat.distributed import choose_dtype
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.identities import in_words, places_of
from nanochat.manifest import (
    DIGEST,
    FORMAT,
    MANIFEST,
    is_sealed,
    open_verified,
    publish,
    read_json_lines,
    write_json,
    write_json_lines,
)
from nanochat.storage import atomic_path, make_folder, storage_errors, sync, temporary_path
from nanochat.tensor_file import save_tensors, size_of_file
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

KEPT = 2
TENSORS = ["model.safetensors", "optimizer.safetensors"]
COMMIT_FORMAT = 1  # raised when the files of a commit, or what is in them, change
NAMED = 5  # tensors in a message


# -- models ------------------------------------------------------------------------------------------------------------------


def save_model(folder: Path, model: GPT, tokenizer: Tokenizer) -> list[str]:
    """Write a model folder that is complete in itself: weights (fp32), configuration, tokenizer. Returns the file names."""
    tensors = weights(model)
    with atomic_path(folder / "model.safetensors", size=size_of_file(tensors)) as path:
        save_tensors(path, tensors)
    write_json(folder / "config.json", model.config.as_dict())
    with atomic_path(folder / "tokenizer.json") as path:
        tokenizer.save(path)
    return ["model.safetensors", "config.json", "tokenizer.json"]


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """Open a published model folder, verified, ready to evaluate or to train on. `dtype` is that of the activations."""
    artefact = open_verified(Path(folder) / MANIFEST)
    model = GPT(GPTConfig(**artefact.json("config.json")))
    path = artefact.path("model.safetensors")
    load_weights(model, load_file(path), where=path)
    model.compute_dtype = choose_dtype(dtype, torch.device(device))
    return model.to(device).eval(), Tokenizer.load(artefact.path("tokenizer.json"))


def weights(model: GPT) -> dict[str, Tensor]:
    """Every parameter once, by name; a tied head is listed as the table that it is."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


@torch.no_grad()
def load_weights(model: GPT, tensors: Mapping[str, Tensor], *, where: object = "the weights") -> None:
    """Copy tensors into a model. UserError, with `where` in front, unless they are just its parameters, by name and shape."""
    require_same_tensors(where, tensors, dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def require_same_tensors(where: object, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """UserError, naming them, unless both are the same tensors: names, shapes and dtypes."""

    def kind(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} is {kind(found[name])} instead of {kind(wanted[name])}"
        for name in wanted
        if name in found and kind(found[name]) != kind(wanted[name])
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"{where}: not the tensors of this model: {'; '.join(problems[:NAMED])}{more}")


# -- commits -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """A training's state after `step` updates."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metrics: list[dict]
    state: dict[str, Any]


class Commits:
    """The commits of one training in one folder, `results/{run}/resume/{stage}/`."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], inputs: Mapping[str, Path] | None = None):
        """`identity` as `identities.identity_of` makes it. `inputs`, manifests of what the training reads, are for messages."""
        self.folder = Path(folder)
        whole = {**identity, "commits": {"format": COMMIT_FORMAT}}
        self.identity = json.loads(json.dumps(whole))  # as it will read back: tuples are lists, keys are text
        self.places = places_of(inputs or {})
        self.passed_over: list[Path] = []
        with storage_errors(self.folder):
            make_folder(self.folder)

    def write(self, commit: Commit) -> None:
        """Make a commit. StorageError if there is no room for it: then nothing of it is left, and those before it are good."""
        found = fingerprint({**commit.weights, **commit.optimizer})
        if commit.state.get("fingerprint", found) != found:  # as the ranks agreed on it
            raise UserError(
                f"step {commit.step:,}: the training's numbers changed between the device and the memory from which they are "
                "written. No commit was made, and those before this step are good: run the same command again"
            )
        final = self.folder / step_name(commit.step)
        temporary = temporary_path(final)
        needed = size_of_file(commit.weights) + size_of_file(commit.optimizer)
        with storage_errors(final, needed=needed, is_exact=False):  # the metrics are a little more
            try:
                temporary.mkdir()
                self.fill(temporary, commit, found)
                self.put(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for useless in self.passed_over:
            if useless != final and useless.exists():
                self.remove(useless)  # or it would count as one of those that are kept
        self.passed_over = []
        for old in self.steps()[:-KEPT]:
            self.remove(old)

    def fill(self, folder: Path, commit: Commit, found: str) -> None:
        save_tensors(folder / "optimizer.safetensors", commit.optimizer)
        save_tensors(folder / "model.safetensors", commit.weights)
        write_json_lines(folder / "metrics.jsonl", commit.metrics)
        write_json(folder / "state.json", {**commit.state, "step": commit.step, "fingerprint": found})
        files = [*TENSORS, "metrics.jsonl", "state.json"]
        for name in files:
            sync(folder / name)
        publish(
            folder / MANIFEST,
            specification=self.identity,
            inputs={},
            files=files,
            results={},
            record={"inputs": self.places},
        )

    def put(self, temporary: Path, final: Path) -> None:
        """Give a commit its name. One that is there already, whole and the same, stays: at no moment is there none."""
        if final.exists():
            if has_same_tensors(final, temporary):
                return shutil.rmtree(temporary)
            self.remove(final)
        os.rename(temporary, final)
        return sync(self.folder)

    def latest(self) -> Commit | None:
        """The newest commit that is whole and of this training; None if there is none. Sweeps what a killed process left."""
        for left in self.folder.glob(".step_*.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        for folder in reversed(self.steps()):
            try:
                return self.read(folder)
            except CommitMismatch:
                raise
            except UserError as error:
                log.warning(f"{error}\n{folder}: not used; going back to the commit before it")
                self.pass_over(folder)
        return None

    def pass_over(self, folder: Path) -> None:
        """What cannot be used goes: at once if it has no manifest (its removal was cut off), else after the next commit."""
        if (folder / MANIFEST).exists():
            self.passed_over.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def read(self, folder: Path) -> Commit | None:
        """One commit; None if it was the last of a finished training of another specification, which is over and makes room."""
        require_format(folder / MANIFEST)
        artefact = open_verified(folder / MANIFEST)
        state = artefact.json("state.json")
        before = artefact.record().get("inputs", {})
        differing = in_words(artefact.specification, self.identity, before=before, now=self.places)
        if differing and state.get("finished"):
            log.info(f"{folder}: belongs to a finished training of another specification; its commits make room for this one")
            for old in self.steps():  # the ones before it too: each was a step towards what is finished
                self.remove(old)
            return None
        if differing:
            raise CommitMismatch(
                f"{self.folder}: holds step {state['step']} of another training, which differs in:\n  "
                + "\n  ".join(differing)
                + "\nTo go on with that one, undo the change. To begin anew, delete the folder."
            )
        commit = Commit(
            step=state.pop("step"),
            weights=load_file(artefact.path("model.safetensors")),
            optimizer=load_file(artefact.path("optimizer.safetensors")),
            metrics=read_json_lines(artefact.path("metrics.jsonl")),
            state=state,
        )
        if folder.name != step_name(commit.step):
            raise UserError(
                f"{folder}: holds step {commit.step}, which its name denies: it was renamed, or copied to another place"
            )
        if state["fingerprint"] != fingerprint({**commit.weights, **commit.optimizer}):
            raise UserError(
                f"{folder}: its tensors are not those that the training held: they changed on their way to the file"
            )
        return commit

    def numerics(self) -> dict[str, Any] | None:
        """What the training chose when it began: dtype, micro-batch and the like. None without a commit of this training."""
        for folder in reversed(self.steps()):
            try:
                artefact = open_verified(folder / MANIFEST)
                if artefact.specification == self.identity:
                    return artefact.json("state.json")["numerics"]
            except UserError:
                continue  # damaged: `latest` tells of it
        return None

    def steps(self) -> list[Path]:
        return sorted(self.folder.glob("step_????????"))

    def remove(self, folder: Path) -> None:
        # the manifest goes first: a folder without one is no commit, wherever the removal stops
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


class CommitMismatch(UserError):
    """A commit of another training: not damaged, so nothing to skip over, but a decision for a person."""


def has_same_tensors(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same commit, and the first is whole."""
    try:
        one, two = open_verified(folder / MANIFEST), open_verified(other / MANIFEST)
        for name in one.files:
            one.path(name)
    except UserError:
        return False
    return one.specification == two.specification and all(one.files.get(name) == two.files[name] for name in TENSORS)


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def require_format(manifest: Path) -> None:
    """CommitMismatch if the manifest is of another version of this project: not damaged, so not to be passed over."""
    try:
        text = manifest.read_bytes()
        content = json.loads(text)
        found, is_whole = content["format"], is_sealed(content, text) or DIGEST not in content  # format 1 had none
    except (OSError, ValueError, KeyError, TypeError):
        return  # damaged: `open_verified` tells of it
    if found != FORMAT and is_whole:
        raise CommitMismatch(
            f"{manifest}: has format {found}, and this version reads {FORMAT}: another version of this project began the "
            "training. To go on with it, use that version. To begin anew, delete the folder of the commits."
        )
