"""Whose work is this? What another training, tokenizer, code or machine left is refused or told, and ranks that disagree stop.

Covered: every key of a training's specification, each input, the code's generation and the format of commits, through the real
program; a tokenizer of the same size wherever it meets rows or a model; every change of the numeric identity that is allowed;
commits whose content does not fit; flipped bits on one of two and three ranks; ranks that begin with different work.
Not covered: GPUs, and other processors than by their name (tests/test_identity.py has one with narrower instructions).
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from nanochat.agreement import fingerprint
from nanochat.checkpoint import COMMIT_FORMAT
from nanochat.identities import GENERATIONS, identity_of
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import FORMAT, MANIFEST, publish, read_json_lines, read_json_object, sealed, write_json, write_json_lines
from nanochat.partial import Parts
from torture import flips, programs
from torture.board import Row, row
from torture.programs import Ended, Trial, World

PART = "identity"
Say = Callable[[str], None]
STAGES = ("base_train", "mid_train")

# another value for each key of a specification that is no number; the model's sizes must fit together
OTHER: dict[str, Any] = {
    "dtype": "float32",
    "steps": 5,
    "tokens_per_parameter": 1.0,
    "total_batch_tokens": 64,
    "model.attention": "naive",
    "model.init": "gpt2",
    "model.mlp": "gelu",
    "model.n_embd": 32,
    "model.n_head": 4,
    "model.n_kv_head": 1,
    "model.norm": "layer",
    "model.positions": "learned",
}


def rows(size: int, *, seed: int, folder: Path, say: Say) -> list[Row]:
    """About `size` flips on two ranks, half as many on three; all of the matrices, whatever the size."""
    world = programs.make_world(folder / "world")
    say("inputs are made")
    found = [
        refused(world, "another specification is refused, naming the key", other_specifications(world)),
        refused(world, "other inputs, code or format of commits are refused in words", other_identities(world)),
        refused(world, "a tokenizer of the same size is refused wherever it meets rows or a model", other_tokenizers(world)),
        refused(world, "commits that do not fit their training are refused by name", unfitting_commits(world)),
        only_sizes_compared(world),
        kept_parts(world, folder / "parts"),
    ]
    say("strangers' commits, tokenizers and kept parts were tried")
    found += [goes_on_elsewhere(world), differing_ranks(world), not_finite(folder / "nan")]
    say("other machines were tried")
    for world_size, number in ((2, size), (3, -(-size // 2))):
        found.append(flipped_bits(number, world_size, seed, folder / f"flips{world_size}"))
        say(f"{number} flipped bits on {world_size} ranks were tried")
    return [*found, uncompared_bits(max(8, size // 10), seed, folder / "control")]


# -- refused -----------------------------------------------------------------------------------------------------------------


def refused(world: World, promise: str, trials: Iterator[Trial]) -> Row:
    """Each ends with exit code 1, in words and not in a traceback, and leaves the commits as they were."""
    chosen = list(trials)
    ended = programs.run_all(chosen)
    return row(PART, promise, map(failure_of_refusal, chosen, ended))


def failure_of_refusal(trial: Trial, ended: Ended) -> str | None:
    if ended.code != 1 or "Traceback" in ended.said:
        return f"{trial.name}: exit code {ended.code}: {ended.said[-400:]}"
    if missing := [words for words in trial.says if words not in ended.said]:
        return f"{trial.name}: does not say {missing[0]!r}, but: {ended.said[-400:]}"
    return None if ended.is_untouched else f"{trial.name}: refused, but the commits changed"


def begun(world: World, stage: str, name: str) -> Path:
    """A copy of a training that was stopped after its first step, to be gone on with."""
    folder = world.folder / "trials" / name.replace("/", "_").replace(" ", "_")
    commits = [path for path in (world.folder / f"begun_{stage}" / "resume").glob("step_*")]
    for path in commits:
        shutil.copytree(path, folder / "resume" / path.name)
    assert len(commits) == 1
    return folder


def going_on(world: World, stage: str, name: str, says: Sequence[str], *, patches=None, edit=None, **changes: Any) -> Trial:
    folder = begun(world, stage, f"{stage} {name}")
    if edit:
        edit_commit(folder / "resume" / "step_00000001", edit)
    arguments = world.train(stage, folder, **changes)
    return Trial(name, "train.py", arguments, says, patches=patches or {}, watched=folder / "resume")


def other_specifications(world: World) -> Iterator[Trial]:
    for stage in STAGES:
        for key, was, is_ in mutations(world.specifications[stage]):
            specification = with_value(world.specifications[stage], key, is_)
            changes = {"model": {key.removeprefix("model."): is_}} if key.startswith("model.") else {}
            says = [f"specification.{key}: was {json.dumps(was)}, is {json.dumps(is_)}"]
            yield going_on(world, stage, f"{stage} {key}", says, specification=specification, **changes)


def mutations(specification: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key, however deep, with its value and another one."""
    for key, value in specification.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from mutations(value, f"{name}.")
        else:
            yield name, value, OTHER[name] if name in OTHER else another(value)


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value * 1.5 + 0.01 if isinstance(value, float) else [*value, "more"] if isinstance(value, list) else 1


def with_value(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {**content, first: with_value(content[first], rest, value) if rest else value}


def other_identities(world: World) -> Iterator[Trial]:
    def trial(stage: str, name: str, says: str, **changes: Any) -> Trial:
        return going_on(world, stage, name, [says], **changes)

    yield trial("base_train", "other text", "inputs.tokens: other rows of tokens", tokens="tokens_of_other_text")
    same_size = "inputs.tokenizer: another tokenizer, of the same size (300 tokens): was"
    yield trial("base_train", "tokenizer and its rows", same_size, tokens="tokens_of_other", tokenizer="other")
    yield trial("mid_train", "other mixture", "inputs.tokens: other rows of tokens", tokens="chats_of_other_mixture")
    start = "inputs.start_from: another model to start from, of the same size"
    yield trial("mid_train", "other start", start, start_from="base_of_other_seed")
    for stage in STAGES:
        generation = f"code.generation: was {GENERATIONS['training']}, is {GENERATIONS['training'] + 1}"
        patches = {"nanochat.identities:GENERATIONS": {"training": GENERATIONS["training"] + 1}}
        yield trial(stage, "next generation", generation, patches=patches)
        patches = {"nanochat.checkpoint:COMMIT_FORMAT": COMMIT_FORMAT + 1}
        yield trial(stage, "next format of commits", "commits.format: was", patches=patches)
        yield trial(stage, "manifest of a later format", f"has format {FORMAT + 1}", edit={"format": FORMAT + 1})
        yield trial(stage, "manifest of an earlier format", "another version of this project", edit={"format": FORMAT - 1})


def other_tokenizers(world: World) -> Iterator[Trial]:
    """Everywhere a tokenizer, rows and a model come together, one of them belongs to the tokenizer of the same size."""
    fresh, words = world.folder / "trials" / "fresh", "made with another tokenizer"
    yield Trial("training", "train.py", world.train("base_train", fresh / "1", tokens="tokens_of_other"), [words])
    yield Trial("training", "train.py", world.train("base_train", fresh / "2", tokenizer="other"), [words])
    arguments = world.train("mid_train", fresh / "3", start_from="base_of_other")
    yield Trial("start model", "train.py", arguments, ["trained with another tokenizer", "of the same size"])
    arguments = world.train("mid_train", fresh / "4", tokenizer="other")
    yield Trial("conversations", "train.py", arguments, [words])
    specification = json.dumps(world.specifications["base_eval"])
    usual = ("base_train", "tokens", "tokenizer")
    others = (("base_of_other", *usual[1:]), (usual[0], "tokens_of_other", usual[2]), (*usual[:2], "other"))
    for number, (model, tokens, tokenizer) in enumerate(others):
        arguments = ["--specification", specification, "--manifest", str(fresh / f"eval{number}" / "manifest.json")]
        arguments += ["--model", world.manifest(model), "--tokens", world.manifest(tokens), "--device", "cpu"]
        yield Trial("base_eval", "base_eval.py", [*arguments, "--core", prompts(world, tokenizer)], [words])
    exchanged = world.folder / "exchanged"
    if not exchanged.exists():
        shutil.copytree(world.folder / "base_train", exchanged)
        shutil.copy(world.folder / "other" / "tokenizer.json", exchanged / "tokenizer.json")
    refusal = "tokenizer.json"
    yield Trial("chat", "nanochat.chat", [str(exchanged), "-p", "ba", "--device", "cpu"], [refusal])
    arguments = ["--specification", json.dumps(world.specifications["chat_eval/sft"]), "--device", "cpu"]
    arguments += ["--manifest", str(fresh / "chat" / "manifest.json"), "--model", str(exchanged / MANIFEST)]
    yield Trial("chat_eval", "chat_eval.py", [*arguments, "--data", bundle(world)], [refusal])


def prompts(world: World, tokenizer: str) -> str:
    """Prompts of CORE: these trials end before anything of them is read."""
    manifest = world.folder / f"prompts_of_{tokenizer}" / MANIFEST
    if not manifest.exists():
        manifest.parent.mkdir()
        inputs = {"tokenizer": Path(world.manifest(tokenizer))}
        publish(manifest, specification={}, inputs=inputs, files=[], results={}, record={})
    return str(manifest)


def bundle(world: World) -> str:
    """A downloaded file: these trials end before anything of it is read."""
    manifest = world.folder / "bundle.zip.manifest.json"
    if not manifest.exists():
        (world.folder / "bundle.zip").write_bytes(b"none")
        publish(manifest, specification={"key": "eval_bundle"}, inputs={}, files=["bundle.zip"], results={}, record={})
    return str(manifest)


def only_sizes_compared(world: World) -> Row:
    """Control: tokenizers compared by their size alone, as is usual."""
    arguments = world.train("base_train", world.folder / "trials" / "control", tokens="tokens_of_other")
    patches = {"nanochat.identities:require_same_tokenizer": compare_nothing}
    trial = Trial("training", "train.py", arguments, ["made with another tokenizer"], patches=patches)
    promise = "a tokenizer of the same size is refused, where only sizes are compared"
    return row(PART, promise, map(failure_of_refusal, [trial], programs.run_all([trial])), is_control=True)


def compare_nothing(tokens: Any, tokenizer: str, *, whose: object) -> None:
    """Sizes are compared by the program itself."""


# -- commits that do not fit -------------------------------------------------------------------------------------------------


def unfitting_commits(world: World) -> Iterator[Trial]:
    edits: dict[str, tuple[dict[str, Any], str]] = {
        "a longer plan": ({"plan.num_steps": 5}, "num_steps: was 5, is 4"),
        "another schedule": ({"plan.warmdown_ratio": 0.3}, "warmdown_ratio: was 0.3, is 0.2"),
        "more tokens": ({"metrics.tokens": 999}, "has seen 999 tokens"),
        "fewer metrics": ({"metrics": []}, "step 1 has the losses of 0 steps"),
        "behind the end": ({"step": 9}, "step 9 is behind the last of 4"),
        "a weight is missing": ({"tensor": ("model", "wte.weight", None)}, "wte.weight is missing"),
        "a weight too many": ({"tensor": ("model", "new.weight", torch.zeros(2))}, "new.weight is unknown"),
        "a weight's shape": ({"tensor": ("model", "wte.weight", torch.zeros(2, 3))}, "wte.weight is float32 [2, 3] instead of"),
        "a weight's dtype": (
            {"tensor": ("model", "wte.weight", torch.zeros(300, 16, dtype=torch.bfloat16))},
            "wte.weight is bfloat16 [300, 16] instead of float32 [300, 16]",
        ),
        "a moment is missing": ({"tensor": ("optimizer", "adamw.mean.wte.weight", None)}, "adamw.mean.wte.weight is missing"),
        "a moment too many": ({"tensor": ("optimizer", "muon.new", torch.zeros(2))}, "muon.new is unknown"),
    }
    for name, (edit, says) in edits.items():
        yield going_on(world, "base_train", name, [says], edit=edit)


def edit_commit(folder: Path, edit: Mapping[str, Any]) -> None:
    """Change a commit and publish it again, so that it is whole and merely says something else."""
    state, metrics = read_json_object(folder / "state.json"), read_json_lines(folder / "metrics.jsonl")
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")}
    content = read_json_object(folder / MANIFEST)
    for key, value in edit.items():
        if key == "tensor":
            kind, name, tensor = value
            tensors[kind] = {k: v for k, v in {**tensors[kind], name: tensor}.items() if v is not None}
        elif key == "metrics":
            metrics = value
        elif key == "metrics.tokens":
            metrics[-1]["tokens"] = value
        elif key == "step":
            metrics = [{**metrics[0], "step": step, "tokens": 128 * (step + 1)} for step in range(value)]
            state["step"] = value
        elif key.startswith("plan."):
            state["plan"][key.removeprefix("plan.")] = value
    state["fingerprint"] = fingerprint({**tensors["model"], **tensors["optimizer"]})
    for name, found in tensors.items():
        save_file(found, folder / f"{name}.safetensors")
    write_json(folder / "state.json", state)
    write_json_lines(folder / "metrics.jsonl", metrics)
    publish(
        folder / MANIFEST,
        specification=content["specification"],
        inputs={},
        files=list(content["files"]),
        results={},
        record={},
    )
    if "format" in edit:
        write_json(folder / MANIFEST, other_format(read_json_object(folder / MANIFEST), edit["format"]))
    if "step" in edit:
        folder.rename(folder.with_name(f"step_{edit['step']:08d}"))


def other_format(content: Mapping[str, Any], number: int) -> dict[str, Any]:
    """As a later version would write it; the first one had no digest."""
    body = {key: value for key, value in content.items() if key != "digest"} | {"format": number}
    return sealed(body) if number > FORMAT else body


# -- kept parts of evaluations -----------------------------------------------------------------------------------------------


def kept_parts(world: World, folder: Path) -> Row:
    """A part is used by the very same evaluation, and evaluated again by any other."""
    logging.getLogger("nanochat").setLevel(logging.ERROR)  # each of them is said
    found = [failure_of_part(folder / "same", kept := evaluation(world, "base_eval"), kept, is_same=True)]
    for stage in ("base_eval", "chat_eval/sft"):
        kept = evaluation(world, stage)
        for group, values in kept.items():
            for key, was, is_ in mutations(values):
                value = is_ if not isinstance(was, str) else was + "0"
                other = {**kept, group: with_value(values, key, value)}
                found.append(failure_of_part(folder / f"{stage}-{group}-{key}".replace("/", "-"), kept, other, is_same=False))
    logging.getLogger("nanochat").setLevel(logging.NOTSET)
    return row(PART, "a kept part of another evaluation is evaluated again", found)


def evaluation(world: World, stage: str) -> dict[str, dict[str, Any]]:
    whole = identity_of(stage.split("/")[0], world.specifications[stage], {"model": "a", "tokens": "b", "core": "c"})
    numerics = {"device": "cpu", "num_devices": 1, "hardware": "x", "dtype": "float32", "torch": "2"}
    return {**whole, "numerics": numerics}


def failure_of_part(folder: Path, kept: Mapping, other: Mapping, *, is_same: bool) -> str | None:
    folder.mkdir(parents=True)
    ranks = flips.Ranks()
    Parts(ranks, attempt=Attempt(folder), identity=kept).run("squad", lambda: 1)
    found = Parts(ranks, attempt=Attempt(folder), identity=other).run("squad", lambda: 2)
    return None if found == (1 if is_same else 2) else f"{folder.name}: {'not used' if is_same else 'used'}"


# -- allowed, and told -------------------------------------------------------------------------------------------------------


def goes_on_elsewhere(world: World) -> Row:
    """A training goes on where its bits will be others, and says so: in the log, in its record, in the report."""
    trials = {
        "nothing": (1, "", {}, []),
        "micro_batch": (1, "micro_batch: was 4, is 2", {}, ["--micro-batch", "2"]),
        "hardware": (1, "hardware: was", {"torch.backends.cpu:get_cpu_capability": other_instructions}, []),
        "muon_dtype": (1, "muon_dtype: was", {"nanochat.distributed:cpu_has_bf16": other_bf16()}, []),
        "versions": (1, "versions.torch: was", {"nanochat.stage:version": other_version}, []),
        "world_size": (2, "world_size: was 1, is 2", {}, []),
    }
    found = []
    for name, (world_size, says, patches, options) in trials.items():
        folder = begun(world, "base_train", f"elsewhere {name}")
        trial = Trial(name, "train.py", [*world.train("base_train", folder), *options], patches=patches)
        ended = programs.run_all([trial], world_size=world_size)[0]
        found.append(failure_of_going_on(name, says, folder, ended if world_size == 1 else ended[0]))
    return row(
        PART, "on other hardware, ranks, micro-batch, dtype or versions a training goes on, and says what changed", found
    )


def other_instructions() -> str:
    return "NARROWER"


def other_version(package: str) -> str:
    return "0.0.1"


def no_bf16() -> bool:
    return False


def yes_bf16() -> bool:
    return True


def other_bf16() -> Callable[[], bool]:
    from nanochat.distributed import cpu_has_bf16

    return no_bf16 if cpu_has_bf16() else yes_bf16


def failure_of_going_on(name: str, says: str, folder: Path, ended: Any) -> str | None:
    from nanochat.reports.machine import not_exact
    from nanochat.reports.report import collect

    if not isinstance(ended, Ended) or ended.code:
        return f"{name}: {ended}"
    stage = collect("base_train", folder / "base_train" / MANIFEST)
    changed, words = stage.record["segments"][1]["changed"], " ".join(not_exact([stage]))
    if not says:
        quiet = not changed and stage.record["is_exact"] and not words and "not bit-identical" not in ended.said
        return None if quiet else f"{name}: told as not exact: {changed} {words}"
    places = {"log": ended.said, "record": " ".join(changed), "report": words}
    silent = [place for place, text in places.items() if says not in text.replace("`", "")]
    return f"{name}: {says!r} is not in the {silent[0]}: {places[silent[0]]}" if silent or stage.record["is_exact"] else None


# -- ranks -------------------------------------------------------------------------------------------------------------------


def differing_ranks(world: World) -> Row:
    """Two ranks that do not begin with the same stop before the first step, and name what differs."""
    fresh = world.folder / "trials"
    base, shuffled = world.train("base_train", fresh / "ranks"), world.folder / "tokens_on_rank_1"
    if not shuffled.exists():
        shutil.copytree(world.folder / "tokens", world.folder / "tokens_on_rank_0")
        shutil.copytree(world.folder / "tokens", shuffled)
        content = np.load(shuffled / "train_00000.npy")
        np.save(shuffled / "train_00000.npy", content[::-1])
    of_rank = json.dumps(world.specifications["base_train"] | {"seed": 40}).replace("40", "4RANK")
    cases = {
        "another seed": (replaced(base, "--specification", of_rank), {}, "specification.seed"),
        "an older file of rows": (replaced(base, "--tokens", world.manifest("tokens_on_rank_RANK")), {}, "data.train"),
        "another version of the code": (base, {"nanochat.identities:GENERATIONS": ({}, {"training": 99})}, "code.generation"),
        "other library versions": (base, {"nanochat.stage:version": (same_version, other_version)}, "versions.torch"),
        "other first weights": (base, {"nanochat.gpt:nanochat_init": (same_init, other_init)}, "wte.weight"),
    }
    found = []
    for name, (arguments, patches, says) in cases.items():
        here = replaced(
            replaced(arguments, "--resume", str(fresh / name / "resume")), "--manifest", str(fresh / name / "m" / MANIFEST)
        )
        (ended,) = programs.run_all([Trial(name, "train.py", here, [says], patches=patches)], world_size=2)
        trial = Trial(name, "train.py", here, [says])
        problems = [failure_of_refusal(trial, end) if isinstance(end, Ended) else f"{name}: {end}" for end in ended]
        committed = list((fresh / name / "resume").glob("step_*"))
        found.append(next((problem for problem in problems if problem), f"{name}: a commit was made" if committed else None))
    return row(PART, "ranks that begin with different work stop before the first step, and name it", found)


def replaced(arguments: Sequence[str], option: str, value: str) -> list[str]:
    found = list(arguments)
    found[found.index(option) + 1] = value
    return found


def same_version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def same_init(name: str, shape: Any, config: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def other_init(name: str, shape: Any, config: Any, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(shape, generator=generator)
    return drawn.nextafter(torch.tensor(9.0)) if name == "wte.weight" else drawn


def flipped_bits(number: int, world_size: int, seed: int, folder: Path) -> Row:
    flips.require_undisturbed(folder / "undisturbed", world_size)
    chosen = flips.plan(number, world_size, seed)
    outcomes = flips.try_all(chosen, folder, world_size)
    failures = [flips.failure_of(flip, outcome) for flip, outcome in zip(chosen, outcomes, strict=True)]
    promise = f"a flipped bit on one of {world_size} ranks never reaches a commit, and is told where it is"
    return row(PART, promise, failures)


def uncompared_bits(number: int, seed: int, folder: Path) -> Row:
    """Control: ranks that do not compare publish what the flipped bit made of the model."""
    flips.require_undisturbed(folder / "undisturbed", 2)
    chosen = flips.plan(number, 2, seed)
    outcomes = flips.try_all(chosen, folder, 2, compares=False)
    failures = [flips.failure_of(flip, outcome) for flip, outcome in zip(chosen, outcomes, strict=True)]
    return row(PART, "a flipped bit never reaches a commit, where ranks do not compare", failures, is_control=True)


def not_finite(folder: Path) -> Row:
    """NaN and infinity in any tensor after the last update before a commit, where no loss tells of them any more."""
    found = flips.forked.run(flips.try_not_finite, folder)[0]
    promise = "NaN and infinity in a weight or in the optimizer's state never reach a commit"
    return row(PART, promise, [found.message] if isinstance(found, flips.forked.Failed) else found)
