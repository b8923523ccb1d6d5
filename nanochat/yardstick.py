"""Score GPT-2 on the CORE tasks: a yardstick for our own models, and for the evaluation itself, since GPT-2's scores are known.

    python -m nanochat.yardstick gpt2 --bundle resources/remote/eval_bundle.zip
    python -m nanochat.yardstick gpt2-xl --bundle resources/remote/eval_bundle.zip --max-per-task 1000 --device cuda
    torchrun --standalone --nproc-per-node 8 -m nanochat.yardstick gpt2-xl --bundle resources/remote/eval_bundle.zip

The folder holds a checkpoint in Hugging Face's format: config.json, model.safetensors, and tokenizer.json or vocab.json with
merges.txt. Nothing is fetched. The table goes to standard output, core.json and examples.jsonl (a row an item) to the output
folder. What is finished is kept there meanwhile: stopped or killed, the same command goes on behind the finished tasks.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.identities import GENERATIONS
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import sha256, write_json, write_json_lines
from nanochat.partial import Parts
from nanochat.reports.scores import interval, items
from nanochat.stage import log, run_program, versions
from nanochat.text import count, score, visible

if TYPE_CHECKING:
    from nanochat.gpt import GPTConfig

YARDSTICKS = Path("results/yardsticks")
# The bundle's own scores of GPT-2, by layers and width. The smallest model's are of all items; those of the others have three
# decimals wherever a task has more than 1,000 items, of which they are
PUBLISHED = {
    (12, 768): "openai-community-gpt2.csv",
    (24, 1024): "openai-community-gpt2-medium.csv",
    (36, 1280): "openai-community-gpt2-large.csv",
    (48, 1600): "openai-community-gpt2-xl.csv",
}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    # imported late: --help and a wrong option need no PyTorch
    from nanochat.core_eval import evaluate_core
    from nanochat.core_tokens import prepare
    from nanochat.distributed import join_ranks
    from nanochat.gpt2 import load_gpt2
    from nanochat.inference import make_ready

    output = args.output or YARDSTICKS / args.folder.resolve().name
    with join_ranks(args.device) as ranks:
        model, tokenizer = load_gpt2(args.folder, ranks.device, args.dtype)
        parameters = model.num_parameters()
        make_ready(model)
        log.info("%s: %s parameters, %s on %s", args.folder, count(parameters), model.dtype_name, ranks.device)
        threads = max(1, (os.cpu_count() or 1) // ranks.world_size)
        core = prepare(args.bundle, tokenizer, tasks=args.tasks, max_per_task=args.max_per_task, num_threads=threads)
        about = ranks.from_main(describe(args) if ranks.is_main else None)
        numerics = {**ranks.record(), "hardware": ranks.hardware, "dtype": model.dtype_name, **versions()}
        identity = {**about, "generation": GENERATIONS["base_eval"], "numerics": numerics}
        state = output / "resume"
        state.mkdir(parents=True, exist_ok=True)
        parts = Parts(ranks, stage="yardstick", num_tasks=len(core.tasks), attempt=Attempt(state), identity=identity)
        results, examples = evaluate_core(model, tokenizer, core, parts=parts)
        if ranks.is_main:
            write_json_lines(output / "examples.jsonl", examples)
            write_json(output / "core.json", {**results, **about, "parameters": parameters, "numerics": numerics})
            shutil.rmtree(state)
            print(visible(as_text(results, published_scores(args.bundle, model.config)), keep="\n"))
            log.info("%s, %s: written", output / "core.json", output / "examples.jsonl")
        ranks.wait()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nanochat.yardstick", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a GPT-2 checkpoint in Hugging Face's format")
    parser.add_argument("--bundle", type=Path, required=True, help="the zip of the CORE tasks")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these; then there is no CORE [all]")
    parser.add_argument("--max-per-task", type=int, metavar="N", help="a seeded sample of each task's items [all]")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="[%(default)s]")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the activations [%(default)s]"
    )
    parser.add_argument("-o", "--output", type=Path, help=f"folder to write to [{YARDSTICKS}/FOLDER]")
    return parser.parse_args(arguments)


def describe(args: argparse.Namespace) -> dict:
    """What is evaluated on what: every byte of the checkpoint and of the bundle."""
    names = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")
    files = [path for path in sorted(args.folder.iterdir()) if path.name in names or path.suffix == ".safetensors"]
    return {
        "model": {path.name: sha256(path) for path in files},
        "bundle": sha256(args.bundle),
        "chosen": args.tasks,
        "max_per_task": args.max_per_task,
    }


# -- the table ---------------------------------------------------------------------------------------------------------------


def as_text(results: Mapping, published: Mapping[str, float]) -> str:
    """The tasks one a line, in columns; below them CORE."""
    rows = [["task", "items", "accuracy", "95 % interval", "centred"]]
    for label, task in results["tasks"].items():
        rows.append([label, items(task), score(task["accuracy"]), interval(task["interval"]), score(task["centered"])])
    if results["core"] is not None:
        rows.append(["CORE", "", "", interval(results["interval"]), score(results["core"])])
    if published:
        rows = [[*rows[0], "published"], *([*row, score(published.get(row[0]))] for row in rows[1:])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    if results["core"] is None:
        lines.append("no CORE: it takes all tasks of the bundle")
    if published:
        lines += [
            "published: what the bundle says of this GPT-2. The smallest was asked all items of the published bundle, the",
            "others at most 1,000 of each task: those that --max-per-task 1000 takes.",
        ]
    return "\n".join(lines)


def published_scores(bundle: Path, config: GPTConfig) -> dict[str, float]:
    """What the bundle itself says of a GPT-2 of these sizes: accuracies by task, and CORE. Empty if it says nothing."""
    name = PUBLISHED.get((config.n_layer, config.n_embd))
    with zipfile.ZipFile(bundle) as file:
        member = next((member for member in file.namelist() if member.split("/")[-1] == name), None)
        if member is None:
            return {}
        try:
            rows = csv.reader(io.StringIO(file.read(member).decode()))
            cells = [[cell.strip() for cell in row] for row in rows][1:]
            return {label: float(accuracy or centred) for label, accuracy, centred in cells}
        except (ValueError, zipfile.BadZipFile) as error:
            log.warning(
                "%s: %s cannot be read as Task, Accuracy, Centered (%s); there is nothing to compare with",
                bundle,
                member,
                error,
            )
            return {}


if __name__ == "__main__":
    run_program(main)
