"""Every way in which something is published here, small enough to be tried a thousand times.

A path has a job, and the jobs that made what stood there before. All run in a folder of their own, a copy of one small world:

    inputs/     a tokenizer, shards, packed rows, a model, a CORE bundle, words, conversations; each with its manifest
    out/        what the path publishes; resume/ commits and parts; resources/ downloads

The functions here run in children of the zygote (`torture.zygote`), which have imported everything.
"""

import contextlib
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torture.zygote import Job

INPUTS = Path("inputs")
SCRIPTS = "workflow/scripts"
HERE = "torture.publish_paths"


@dataclass(frozen=True)
class PublishPath:
    """`before` made what the path finds; `has_commits`: a newest commit is to be there at every moment, too."""

    name: str
    job: Job
    before: tuple[Job, ...] = ()
    has_commits: bool = False
    is_quick: bool = False  # all points in every size


def program(name: str, specification: dict, *arguments: object, manifest: str = "out/manifest.json", **environment: str) -> Job:
    words = ["--specification", json.dumps(specification), "--manifest", manifest, *map(str, arguments)]
    return Job(f"{SCRIPTS}/{name}.py", words, environment)


def function(name: str, *arguments: object) -> Job:
    return Job(f"{HERE}:{name}", [str(argument) for argument in arguments])


def publish_paths(server: str) -> list[PublishPath]:
    """All of them. `server` is the address of the folder of a web server with a file `f.parquet` in it."""
    return [*manifest_paths(), *commit_paths(), *stage_paths(), *evaluation_paths(), *training_paths(), *download_paths(server)]


# -- 1: manifests ------------------------------------------------------------------------------------------------------------


def manifest_paths() -> list[PublishPath]:
    make, make_other, unlink = (
        function("publish_stage", 1),
        function("publish_stage", 2),
        function("remove", "out/manifest.json"),
    )
    return [
        PublishPath("publish", make, is_quick=True),
        PublishPath("publish over another", make, (make_other,), is_quick=True),
        PublishPath("republish", make, (make, unlink), is_quick=True),
    ]


def publish_stage(seed: str) -> None:
    from nanochat.manifest import write_json
    from nanochat.stage import Stage, run_program
    from nanochat.storage import atomic_path

    def main() -> None:
        stage = Stage(
            Path("out/manifest.json"), specification={"seed": seed}, inputs={"words": INPUTS / "words.txt.manifest.json"}
        )
        if stage.is_done():
            return
        with atomic_path(stage.folder / "data.bin") as path:
            path.write_bytes(seed.encode() * 100_000)
        write_json(stage.folder / "numbers.json", {"seed": seed})
        stage.publish(["data.bin", "numbers.json"], results={"rows": 3})

    run_program(main)


def remove(path: str) -> None:
    os.unlink(path)


# -- 2: commits --------------------------------------------------------------------------------------------------------------


def commit_paths() -> list[PublishPath]:
    def commits(*steps: int) -> tuple[Job, ...]:
        return tuple(function("write_commit", step) for step in steps)

    return [
        PublishPath("commit, the first", *commits(1), is_quick=True),
        PublishPath("commit, removing the oldest", *commits(3), commits(1, 2), has_commits=True, is_quick=True),
        PublishPath("commit over the same step", *commits(2), commits(1, 2), has_commits=True, is_quick=True),
        PublishPath(
            "commit over a damaged one",
            *commits(2),
            (*commits(1, 2), function("damage_commit", 2)),
            has_commits=True,
            is_quick=True,
        ),
        PublishPath(
            "going on from a commit", function("go_on"), (*commits(1, 2), function("leave_torn_commit")), True, is_quick=True
        ),
        PublishPath("making room for another training", function("go_on", "other"), commits(1, 9), is_quick=True),
    ]


def commits_of(training: str = "this"):
    from nanochat.checkpoint import Commits

    return Commits(Path("resume/base_train"), {"specification": {"name": training}})


def write_commit(step: str) -> None:
    import torch

    from nanochat.checkpoint import Commit
    from nanochat.stage import run_program

    tensors = {name: torch.full((64, 65), float(step)) for name in ("a", "b")}
    state = {"finished": step == "9", "numerics": {"dtype": "float32"}}

    def main() -> None:
        commits = commits_of()
        commits.latest()  # as a training does before its first commit
        commits.write(Commit(int(step), tensors, tensors, [{"step": 1, "loss": 2.5}], state))

    run_program(main)


def damage_commit(step: str) -> None:
    path = Path(f"resume/base_train/step_{int(step):08d}/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def leave_torn_commit() -> None:
    """What a process that was killed leaves."""
    from nanochat.storage import temporary_path

    torn = temporary_path(Path("resume/base_train/step_00000003"), pid=dead_process())
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")


def dead_process() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def go_on(training: str = "this") -> None:
    from nanochat.stage import run_program

    def main() -> None:
        found = commits_of(training).latest()
        assert (found.step if found else None) == (2 if training == "this" else None)

    run_program(main)


# -- 3, 4, 6: tokens, tokenizer, report, trace -------------------------------------------------------------------------------


def stage_paths() -> list[PublishPath]:
    def path(name: str, job, specification: dict, **change) -> list[PublishPath]:
        return [PublishPath(f"{name}, over another", job(specification), (job({**specification, **change}),))]

    return [
        *path("tokens of text", tokens_text, {"sequence_len": 64}, sequence_len=32),
        *path("tokens of conversations", tokens_conversations, CONVERSATIONS, seed=2),
        *path("tokens of CORE", tokens_core, {"tasks": None, "max_per_task": 2}, max_per_task=1),
        *path(
            "tokenizer", tokenizer, {"vocab_size": 300, "max_characters": 20_000, "document_characters": 1_000}, vocab_size=290
        ),
        *path("report", report, {"cost_per_gpu_hour": 1.0}, cost_per_gpu_hour=2.0),
        *path("trace", trace, {"prompt": "the tale", "model": "base_train", "beside": None, "step_tokens": 8}, prompt="a tale"),
    ]


CONVERSATIONS = {
    "mixture": [{"task": "custom", "file": "inputs/own.jsonl"}],
    "validation": [{"task": "custom", "file": "inputs/own.jsonl", "rows": 5}],
    **{"seed": 1, "sequence_len": 64, "mask_user": True},
}
SHARDS = [INPUTS / "shard_0.parquet.manifest.json", INPUTS / "shard_1.parquet.manifest.json"]
HELD_OUT = INPUTS / "shard_2.parquet.manifest.json"
TOKENIZER = INPUTS / "tokenizer/manifest.json"
TOKENS = INPUTS / "tokens/manifest.json"
CORE = INPUTS / "core/manifest.json"
MODEL = INPUTS / "model/manifest.json"


def tokens_text(specification: dict) -> Job:
    files = ["--tokenizer", TOKENIZER, "--shards", *SHARDS, "--validation-shard", HELD_OUT]
    return program("tokens_text", specification, *files)


def tokens_conversations(specification: dict) -> Job:
    return program("tokens_conversations", specification, "--tokenizer", TOKENIZER, "--files", INPUTS / "own.jsonl")


def tokens_core(specification: dict) -> Job:
    return program("tokens_core", specification, "--tokenizer", TOKENIZER, "--data", INPUTS / "bundle.zip.manifest.json")


def tokenizer(specification: dict) -> Job:
    return program("tokenizer", specification, "--shards", *SHARDS, "--validation-shard", HELD_OUT)


def report(specification: dict) -> Job:
    stages = [f"base_train={MODEL}", f"tokenizer={TOKENIZER}"]
    return program("report", specification, "--title", "tiny", "--stages", *stages, "--logs", "logs")


def trace(specification: dict) -> Job:
    return program("trace", specification, "--run", "tiny", "--model", MODEL, "--tokens", TOKENS)


# -- 5: evaluations ----------------------------------------------------------------------------------------------------------


BASE_EVAL = {"eval_tokens": 512, "samples": ["The"], "sample_tokens": 2, "seed": 1}
CHAT_EVAL = {
    **{"tasks": ["spelling_bee"], "spelling_items": 2, "max_per_task": None, "max_new_tokens": 2, "num_samples": 1},
    **{"temperature": 0.0, "top_k": 50, "seed": 1, "sandbox": "closed"},
}


def evaluation_paths() -> list[PublishPath]:
    base = ("--model", MODEL, "--tokens", TOKENS, "--core", CORE, "--device", "cpu")
    chat = ("--model", MODEL, "--data", INPUTS / "words.txt.manifest.json", "--device", "cpu")
    state = {"NANOCHAT_STATE": "resume/eval"}
    return [
        PublishPath("parts", replace(function("publish_parts"), environment=state)),
        PublishPath("base_eval", program("base_eval", BASE_EVAL, *base, **state)),
        PublishPath("chat_eval", program("chat_eval", CHAT_EVAL, *chat, **state)),
    ]


def publish_parts() -> None:
    from nanochat.distributed import Ranks
    from nanochat.jobs.attempt import Attempt
    from nanochat.manifest import write_json
    from nanochat.partial import Parts, finish
    from nanochat.stage import Stage, run_program

    def main() -> None:
        attempt = Attempt(Path("resume/eval"))
        stage = Stage(Path("out/manifest.json"), specification={"seed": 1}, inputs={})
        if stage.is_done():
            return finish(attempt)
        parts = Parts.of_stage(stage, Ranks(), name="base_eval", num_tasks=2, attempt=attempt, machine={})
        found = {name: parts.run(name, lambda name=name: [name] * 10) for name in ("one", "two")}
        write_json(stage.folder / "found.json", found)
        parts.publish(stage, ["found.json"], results=found, record={})

    run_program(main)


# -- 7: trainings ------------------------------------------------------------------------------------------------------------


TRAINING = {
    **{"seed": 1, "total_batch_tokens": 256, "steps": 2, "tokens_per_parameter": None, "weight_decay": 0.0, "grad_clip": 1.0},
    **{
        "warmup_ratio": 0.0,
        "warmdown_ratio": 0.5,
        "final_lr_ratio": 0.0,
        "dtype": "float32",
        "eval_every": 0,
        "eval_tokens": 256,
    },
    **{"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004, "model": {}},
}
SIZES = {"vocab_size": 300, "n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 16, "sequence_len": 64}
CONFIG = {
    **SIZES,
    **{"positions": "rope", "norm": "rms", "mlp": "relu2", "attention": "sdpa", "qk_norm": True, "soft_cap": 15.0},
    **{"tied_head": False, "bias": False, "norm_embedding": True, "init": "nanochat", "rope_base": 10000.0},
}


def training_paths() -> list[PublishPath]:
    arguments = ("--tokens", TOKENS, "--tokenizer", TOKENIZER, "--model", json.dumps(CONFIG), "--resume", "resume/base_train")
    arguments += ("--device", "cpu", "--commit-every", 1)
    return [PublishPath("training", program("train", TRAINING, *arguments, NANOCHAT_STATE="resume/base_train"))]


# -- 8, 9: downloads, repair -------------------------------------------------------------------------------------------------


def download_paths(server: str) -> list[PublishPath]:
    def download(key: str) -> Job:
        files = ["--catalogue", f"inputs/{key}.yaml", "--lock", "resources/remote.lock.jsonl"]
        specification = {"key": key, "revision": None}
        return program("download", specification, *files, manifest="resources/f.parquet.manifest.json", SERVER=server)

    local = download("local")
    repair = function("verify", "--repair", "out", "again")
    made, again = function("publish_stage", 1), function("copy", "out", "again")
    return [
        PublishPath("download from a folder", local),
        PublishPath("download from a folder, over another", local, (download("other"),)),
        PublishPath("download from a server", download("remote")),
        PublishPath("verify --repair", repair, (made, again, function("damage", "out/data.bin"))),
    ]


def verify(*arguments: str) -> None:
    from nanochat import verify

    sys.argv = ["verify", *arguments]
    sys.exit(verify.main())


def copy(folder: str, copied: str) -> None:
    shutil.copytree(folder, copied)


def damage(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# -- in the child ------------------------------------------------------------------------------------------------------------


def call(name: str) -> None:
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(*sys.argv[1:])


def steady() -> None:
    """What is written by the clock (every 2 s) is written when it is news alone, so that the calls are the same each time."""
    from nanochat import storage
    from nanochat.jobs import attempt

    attempt.SECONDS_BETWEEN_WRITES = float("inf")
    if "NANOCHAT_STATE" in os.environ:
        storage.sweep(Path(os.environ["NANOCHAT_STATE"]))  # as the launcher does


def remember(memory: Path) -> None:
    """What takes seconds to work out and milliseconds to write is worked out once: pictures, and what a trace shows.

    The writing is the real one. What is remembered lies outside the world, and is made by a run before the first that counts.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    from nanochat import component_map
    from nanochat.tracing import beside, forward, step

    draw, numbers = Figure.savefig, itertools.count()

    def savefig(figure: Figure, target: Path, **options: object) -> None:
        path = memory / f"{next(numbers)}.png"
        if not path.exists():
            draw(figure, path, **options)
        Image.open(path).save(target, format="png")

    Figure.savefig = savefig
    functions = [(forward, "trace_forward"), (beside, "trace_counterpart"), (step, "trace_step")]
    for module, name in [*functions, (component_map, "component_map")]:
        setattr(module, name, remembered(memory / name, getattr(module, name)))


def remembered(path: Path, function: Callable[..., dict]) -> Callable[..., dict]:
    from nanochat.gpt import GPTConfig

    def from_memory(*arguments: object, **options: object) -> dict:
        words = repr([found for found in (*arguments, *options.values()) if isinstance(found, str | int | GPTConfig)])
        file = path.with_name(f"{path.name}-{hashlib.sha256(words.encode()).hexdigest()[:8]}.json")
        if not file.exists():
            file.write_text(json.dumps(function(*arguments, **options)))
        return json.loads(file.read_text())

    return from_memory


def write_directly() -> None:
    """The negative control: a file is written under its final name, a commit in its final folder."""
    from nanochat import checkpoint, storage

    @contextlib.contextmanager
    def direct(path: Path, **options: object) -> Iterator[Path]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)

    def direct_folder(path: Path, **options: object) -> Path:
        return Path(path)

    atomic_path = storage.atomic_path
    for module in list(sys.modules.values()):
        if getattr(module, "atomic_path", None) is atomic_path:
            module.atomic_path = direct
    checkpoint.temporary_path = direct_folder
    checkpoint.Commits.put = lambda self, temporary, final: None


# -- the world ---------------------------------------------------------------------------------------------------------------


def make_world() -> None:
    """Fill the folder where we are."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from bundles import write_bundle
    from small_models import random_model, small_tokenizer

    from nanochat import core_tokens
    from nanochat.checkpoint import save_model
    from nanochat.manifest import write_json_lines

    for folder in (INPUTS / "tokens", INPUTS / "tokenizer", INPUTS / "core", Path("resume/eval")):
        folder.mkdir(parents=True)
    tokenizer, random = small_tokenizer(), np.random.default_rng(0)
    tokenizer.save(INPUTS / "tokenizer/tokenizer.json")
    publish_there(TOKENIZER, ["tokenizer.json"])
    for split in ("train", "validation"):
        np.save(INPUTS / "tokens" / f"{split}.npy", random.integers(0, 256, (24, 65), dtype=np.uint16))
    publish_there(TOKENS, ["train.npy", "validation.npy"], inputs={"tokenizer": TOKENIZER})
    words = re.findall(r"\w+", "the tale of a small world in which a fox jumps over the lazy dog and sleeps for a long time")
    for number in range(3):
        texts = [" ".join(random.choice(words, 40)) for _ in range(60)]
        pq.write_table(pa.table({"text": texts}), INPUTS / f"shard_{number}.parquet")
        publish_there(INPUTS / f"shard_{number}.parquet.manifest.json", [f"shard_{number}.parquet"], key=f"shard_{number}")
    files = save_model(INPUTS / "model", random_model(**SIZES), tokenizer)
    rows = [{"step": step, "loss": 5.0 - step / 10, "lr_scale": 1.0, "grad_norm": 2.0, "tokens": 256} for step in range(3)]
    write_json_lines(INPUTS / "model/metrics.jsonl", [*rows, {"step": 3, "validation_loss": 4.5, "validation_bpb": 3.1}])
    results = {"parameters": 1000, "steps": 3, "tokens": 768, "flops": 1e6, "train_loss": 5.0, "validation_bpb": 3.1}
    results["validation_loss"] = 4.5
    publish_there(MODEL, [*files, "metrics.jsonl"], results=results, inputs={"tokenizer": TOKENIZER}, **TRAINING)
    core = core_tokens.prepare(write_bundle(INPUTS), tokenizer, max_per_task=2)
    publish_there(CORE, core_tokens.save(core, INPUTS / "core"), inputs={"tokenizer": TOKENIZER})
    publish_there(INPUTS / "bundle.zip.manifest.json", ["bundle.zip"], key="eval_bundle")
    (INPUTS / "words.txt").write_text("pear\nplum\nfig\nkiwi\nlime\ndate\n")
    publish_there(INPUTS / "words.txt.manifest.json", ["words.txt"], key="words")
    messages = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(40)
    ]
    (INPUTS / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    for key, url in {"local": "file:shard_0.parquet", "other": "file:shard_1.parquet", "remote": "${SERVER}"}.items():
        (INPUTS / f"{key}.yaml").write_text(CATALOGUE.format(key=key, url=url))


CATALOGUE = """\
folder: here
files:
  {key}: {{url: "{url}", path: f.parquet, rows: 60}}
"""


def publish_there(
    manifest: Path, files: list[str], *, results: dict | None = None, inputs: dict | None = None, **specification: object
) -> None:
    from nanochat.manifest import identity, publish

    found = {name: identity(path) for name, path in (inputs or {}).items()}
    publish(manifest, specification=specification, inputs=found, files=files, results=results or {}, record={})
