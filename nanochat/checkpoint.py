"""Models on disk, and commits: the whole state of a training, from which it goes on as if nothing had happened.

A commit is a folder `step_00000250/` with the weights, the optimizer's state, the metrics so far and the loop's own few
numbers. It is written under another name, synced, and renamed into place, so that it is there whole or not at all. The last two
are kept: if the newest is damaged, the one before it serves. A commit carries the identity of its training (specification and
inputs) and is refused by any other.
"""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.distributed import choose_dtype
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.manifest import MANIFEST, atomic_path, open_verified, publish, read_json_lines, sync, write_json, write_json_lines
from nanochat.tokenizer import Tokenizer

log = logging.getLogger("nanochat")

KEPT = 2


# -- models ------------------------------------------------------------------------------------------------------------------


def save_model(folder: Path, model: GPT, tokenizer: Tokenizer) -> list[str]:
    """Write a model folder that is complete in itself: weights (fp32), configuration, tokenizer. Returns the file names."""
    with atomic_path(folder / "model.safetensors") as path:
        save_file(weights(model), path)
    write_json(folder / "config.json", model.config.as_dict())
    with atomic_path(folder / "tokenizer.json") as path:
        tokenizer.save(path)
    return ["model.safetensors", "config.json", "tokenizer.json"]


def load_model(folder: Path, device: str | torch.device = "cpu", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """Open a published model folder, verified, ready to evaluate or to train on. `dtype` is that of the activations."""
    artefact = open_verified(Path(folder) / MANIFEST)
    model = GPT(GPTConfig(**artefact.json("config.json")))
    load_weights(model, load_file(artefact.path("model.safetensors")))
    model.compute_dtype = choose_dtype(dtype, torch.device(device))
    return model.to(device).eval(), Tokenizer.load(artefact.path("tokenizer.json"))


def weights(model: GPT) -> dict[str, Tensor]:
    """Every parameter once, by name; a tied head is listed as the table that it is."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


@torch.no_grad()
def load_weights(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


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

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(identity))  # as it will read back: tuples are lists, keys are text
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, commit: Commit) -> None:
        final = self.folder / f"step_{commit.step:08d}"
        temporary = self.folder / f".{final.name}.tmp-{platform.node()}-{os.getpid()}"
        temporary.mkdir()
        save_file(commit.optimizer, temporary / "optimizer.safetensors")
        save_file(commit.weights, temporary / "model.safetensors")
        write_json_lines(temporary / "metrics.jsonl", commit.metrics)
        write_json(temporary / "state.json", {"step": commit.step, **commit.state})
        files = ["model.safetensors", "optimizer.safetensors", "metrics.jsonl", "state.json"]
        for name in files:
            sync(temporary / name)
        publish(temporary / MANIFEST, specification=self.identity, inputs={}, files=files, results={}, record={})
        if final.exists():
            shutil.rmtree(final)  # of the same training at the same step, so the same bits, or damaged
        os.rename(temporary, final)
        sync(self.folder)
        for old in self.steps()[:-KEPT]:
            self.remove(old)

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
        return None

    def read(self, folder: Path) -> Commit | None:
        """One commit; None if it was the last of a finished training of another specification, which is over and makes room."""
        artefact = open_verified(folder / MANIFEST)
        state = artefact.json("state.json")
        differing = list(differences(artefact.specification, self.identity))
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
        return Commit(
            step=state.pop("step"),
            weights=load_file(artefact.path("model.safetensors")),
            optimizer=load_file(artefact.path("optimizer.safetensors")),
            metrics=read_json_lines(artefact.path("metrics.jsonl")),
            state=state,
        )

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


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Lines that say where two nested values differ: `specification.seed: was 1, is 2`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield f"{path}: was {json.dumps(found)}, is {json.dumps(wanted)}"
