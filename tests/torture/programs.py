"""A small world of inputs, and the real programs run on them again and again in one forked process: milliseconds each.

world = make_world(folder)              two tokenizers of one size, rows, models, trainings that were stopped half-way
ended = run_all([Trial(...), ...])      each trial is one run of one program, as a launcher would start it
"""

import hashlib
import io
import json
import logging
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from configurations import REPOSITORY, load

from nanochat.jobs.attempt import ask_to_stop
from nanochat.manifest import publish
from torture import forked

SCRIPTS = REPOSITORY / "workflow" / "scripts"
EDITS = {
    "tokenizer.vocab_size": 300,
    "tokens.sequence_len": 32,
    "base_train.depth": 1,
    "base_train.width": 16,
    "base_train.heads": 2,
    "base_train.steps": 4,
    "base_train.total_batch_tokens": 128,
    "base_train.eval_tokens": 64,
    "base_train.eval_every": 0,
    "mid_train.mixture": [{"task": "identity", "rows": 12}],
    "mid_train.validation": [{"task": "identity", "split": "test", "rows": 4}],
    "mid_train.total_batch_tokens": 128,
    "mid_train.eval_tokens": 64,
    "mid_train.eval_every": 0,
}


@dataclass(frozen=True)
class Trial:
    """One run of a program. `patches` change the running code: "module:name" -> value; of a dict, the items that it gets."""

    name: str
    program: str
    arguments: Sequence[str]
    says: Sequence[str] = ()  # what must be in its message
    environment: Mapping[str, str] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)
    watched: Path | None = None  # a folder that must stay as it is


@dataclass(frozen=True)
class Ended:
    code: int
    said: str
    is_untouched: bool  # the folder that was watched


# -- running -----------------------------------------------------------------------------------------------------------------


def run_all(trials: Sequence[Trial], *, world_size: int = 1) -> list[Any]:
    """How each trial ended; with several ranks, a list of it for each. Ranks start anew for every trial."""
    if world_size == 1:
        (ended,) = forked.run(run_each, list(trials))
        if isinstance(ended, forked.Failed):
            raise AssertionError(f"{ended.message}\n{ended.trace}")
        return ended
    return [forked.run(run_rank, trial, forked.free_port(), world_size=world_size, joins=False) for trial in trials]


def run_each(ranks, trials: list[Trial]) -> list[Ended]:
    return [run_here(trial) for trial in trials]


def run_rank(ranks, trial: Trial, port: int) -> Ended:
    os.environ |= {"RANK": str(ranks.rank), "LOCAL_RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCH_RANK": str(ranks.rank)}
    own = {key: value[ranks.rank] if isinstance(value, tuple) else value for key, value in trial.patches.items()}
    arguments = [argument.replace("RANK", str(ranks.rank)) for argument in trial.arguments]
    return run_here(Trial(trial.name, trial.program, arguments, trial.says, trial.environment, own, trial.watched))


def run_here(trial: Trial) -> Ended:
    """Run a program in this process as `python program.py arguments` would, and take back what it did to the process."""
    before, said = digest_of(trial.watched), io.TextIOWrapper(io.BytesIO(), write_through=True)
    kept = sys.argv, sys.stdout, sys.stderr, dict(os.environ)
    sys.argv, sys.stdout, sys.stderr = [trial.program, *map(str, trial.arguments)], said, said
    os.environ |= {"PATH": "/nonexistent"} | dict(trial.environment)  # no git: it would take longer than the program
    logging.getLogger().handlers.clear()
    code: Any = 0
    try:
        with patched(trial.patches):
            if trial.program.endswith(".py"):
                runpy.run_path(str(SCRIPTS / trial.program), run_name="__main__")
            else:
                runpy.run_module(trial.program, run_name="__main__", alter_sys=False)
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            said.write(code)
            code = 1
    except BaseException:
        traceback.print_exc(file=said)
        code = 2
    finally:
        sys.argv, sys.stdout, sys.stderr = kept[:3]
        os.environ.clear()
        os.environ |= kept[3]
    return Ended(code, said.buffer.getvalue().decode(), digest_of(trial.watched) == before)


@contextmanager
def patched(patches: Mapping[str, Any]):
    undo = []
    for place, value in patches.items():
        module, name = import_module(place.partition(":")[0]), place.partition(":")[2]
        old = getattr(module, name)
        undo.append((module, name, old, dict(old) if isinstance(old, dict) else None))
        if isinstance(old, dict):
            old |= value  # in place: others have imported it
        else:
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, old, items in reversed(undo):
            setattr(module, name, old)
            if items is not None:
                old.clear()
                old |= items


def digest_of(folder: Path | None) -> str:
    """Of all files of a folder, their names and their bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


# -- the world ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Where everything is, and the specifications that the configuration makes."""

    folder: Path
    specifications: dict[str, dict]
    model: dict[str, Any]

    def manifest(self, name: str) -> str:
        return str(self.folder / name / "manifest.json")

    def train(self, stage: str, folder: Path, *, specification: Mapping[str, Any] | None = None, **inputs: Any) -> list[str]:
        """Arguments of train.py, with `tokens`, `tokenizer`, `start_from` and `model` (fields) in place of the usual ones."""
        chosen = {"tokens": "tokens", "tokenizer": "tokenizer", "start_from": "base_train"} | inputs
        if stage == "mid_train":
            chosen = {"tokens": "chats"} | {key: value for key, value in chosen.items() if key != "tokens"} | inputs
        start = ["--start-from", self.manifest(chosen["start_from"])]
        if stage == "base_train":
            start = ["--model", json.dumps(self.model | inputs.get("model", {}))]
        return [
            *("--specification", json.dumps(specification or self.specifications[stage])),
            *("--manifest", str(folder / stage / "manifest.json"), "--resume", str(folder / "resume")),
            *("--tokens", self.manifest(chosen["tokens"]), "--tokenizer", self.manifest(chosen["tokenizer"])),
            *(*start, "--device", "cpu", "--commit-every", "1"),
        ]


def make_world(folder: Path) -> World:
    """All inputs of trainings in two kinds, made by the real programs; and a training of each stage, stopped after a step."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load(folder, EDITS)
    stages = ("tokenizer", "tokens/pretrain", "tokens/mid_train", "base_train", "mid_train", "base_eval", "chat_eval/sft")
    specifications = {stage: json.loads(config.specification("small", stage)) for stage in stages}
    world = World(folder, specifications, config.gpt_config("small"))
    shards = [write_shard(folder, number) for number in range(3)]
    trials = [
        *(make_tokenizer(world, name, shard, shards[2]) for name, shard in (("tokenizer", shards[0]), ("other", shards[1]))),
        make_tokens(world, "tokens", "tokenizer", shards[0], shards[2]),
        make_tokens(world, "tokens_of_other_text", "tokenizer", shards[1], shards[2]),
        make_tokens(world, "tokens_of_other", "other", shards[0], shards[2]),
        make_chats(world, "chats", 12),
        make_chats(world, "chats_of_other_mixture", 13),
        *(make_base(world, name, **choice) for name, choice in BASES.items()),
        begin(world, "base_train"),
        begin(world, "mid_train"),
    ]
    for trial, ended in zip(trials, run_all(trials), strict=True):
        assert ended.code == 0, f"{trial.name}: {ended.said}"
    return world


BASES: dict[str, dict] = {
    "base_train": {},
    "base_of_other_seed": {"seed": 7},
    "base_of_other": {"tokens": "tokens_of_other", "tokenizer": "other"},
}


def write_shard(folder: Path, number: int) -> Path:
    path = folder / f"shard_{number:05d}.parquet"
    words = [f"{first}{second}{number * 'q'}" for first in ("ba", "co", "du", "fi") for second in ("lam", "ner", "sto", "vid")]
    texts = [" ".join(words[(row * k) % 16] for k in range(1, 24)) for row in range(1, 80)]
    pq.write_table(pa.table({"text": texts}), path)
    manifest = path.with_name(path.name + ".manifest.json")
    publish(manifest, specification={"key": f"stories/{path.stem}"}, inputs={}, files=[path.name], results={}, record={})
    return manifest


def make_tokenizer(world: World, name: str, shard: Path, validation: Path) -> Trial:
    arguments = ["--specification", json.dumps(world.specifications["tokenizer"]), "--manifest", world.manifest(name)]
    return Trial(name, "tokenizer.py", [*arguments, "--shards", str(shard), "--validation-shard", str(validation)])


def make_tokens(world: World, name: str, tokenizer: str, shard: Path, validation: Path) -> Trial:
    arguments = ["--specification", json.dumps(world.specifications["tokens/pretrain"]), "--manifest", world.manifest(name)]
    arguments += ["--tokenizer", world.manifest(tokenizer), "--shards", str(shard), "--validation-shard", str(validation)]
    return Trial(name, "tokens_text.py", arguments)


def make_chats(world: World, name: str, rows: int) -> Trial:
    specification = json.loads(json.dumps(world.specifications["tokens/mid_train"]))
    specification["mixture"][0]["rows"] = rows
    arguments = ["--specification", json.dumps(specification), "--manifest", world.manifest(name)]
    return Trial(name, "tokens_conversations.py", [*arguments, "--tokenizer", world.manifest("tokenizer")])


def make_base(world: World, name: str, seed: int = 42, **inputs: str) -> Trial:
    specification = world.specifications["base_train"] | {"seed": seed}
    arguments = world.train("base_train", world.folder / f"making_{name}", specification=specification, **inputs)
    arguments[arguments.index("--manifest") + 1] = world.manifest(name)
    return Trial(name, "train.py", arguments)


def begin(world: World, stage: str) -> Trial:
    """A training that is asked to stop from the start: it commits its first step, and ends."""
    folder = world.folder / f"begun_{stage}"
    state = folder / "resume"
    (state / "claims").mkdir(parents=True)
    (state / "claims" / "00000001.json").write_text("{}")
    ask_to_stop(state, 1, reason="deadline", text="test")
    environment = {"NANOCHAT_STATE": str(state), "NANOCHAT_CLAIM": "1"}
    return Trial(f"begin {stage}", "train.py", world.train(stage, folder), environment=environment)
