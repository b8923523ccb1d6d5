"""Score a chat model on the chat tasks: multiple choice by logits, and answers that it writes. Goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.identities import GENERATIONS
from nanochat.jobs.attempt import Attempt
from nanochat.manifest import write_json_lines
from nanochat.partial import Parts, Stopped, finish
from nanochat.stage import Stage, by_key, log, run_program, stage_parser, verified_files

if TYPE_CHECKING:
    from nanochat import tasks


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="manifest of the chat model")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="manifests of the tasks' test files")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()

    data, attempt = by_key(args.data), Attempt.from_environment()
    stage = Stage(args.manifest, specification=args.specification, inputs={"model": args.model, **data})
    # before anything imports PyTorch, which takes seconds, and this does not; so every rank looks for itself
    if stage.is_done():
        finish(attempt)
    else:
        run(args, stage, data, attempt)


def run(args, stage: Stage, data: Mapping[str, Path], attempt: Attempt) -> None:
    from nanochat import tasks
    from nanochat.chat_eval import Sampling, count_parts, evaluate_chat
    from nanochat.checkpoint import load_model
    from nanochat.distributed import join_ranks
    from nanochat.inference import make_ready
    from nanochat.sandbox import require

    specification, name = args.specification, f"chat_eval/{stage.folder.name}"
    sandbox = require(specification["sandbox"]) if "humaneval" in specification["tasks"] else None
    with join_ranks(args.device) as ranks:
        if ranks.is_main and sandbox:
            log.info("programs that the model writes run in a sandbox of tier %s", sandbox)
        if ranks.is_main:
            attempt.report(stage=name, state="starting", **ranks.record())
        model, tokenizer = load_model(args.model.parent, ranks.device)
        files = verified_files(data)
        rows = {"spelling_bee": specification["spelling_items"]}  # made, not read, so somebody must say how many
        options = {"humaneval": {"sandbox": specification["sandbox"]}}
        chosen = {
            task: tasks.build(task, split="test", files=files, rows=rows.get(task), **options.get(task, {}))
            for task in specification["tasks"]
        }
        machine = {**ranks.record(), "hardware": ranks.hardware, "dtype": model.dtype_name}
        parts = Parts.of_stage(stage, ranks, name=name, num_tasks=count_parts(chosen), attempt=attempt, machine=machine)
        try:
            results, answers = evaluate_chat(
                make_ready(model),
                tokenizer,
                chosen,
                sampling=Sampling(**{field.name: specification[field.name] for field in fields(Sampling)}),
                max_per_task=specification["max_per_task"],
                parts=parts,
            )
        except Stopped:
            parts.say_stopped()
            return
        if ranks.is_main:
            write_json_lines(stage.folder / "answers.jsonl", answers)
            results["samples"] = first_answers(chosen, answers)
            record = {**machine, "generation": GENERATIONS["chat_eval"], "sandbox": sandbox and sandbox.tier}
            parts.publish(stage, ["answers.jsonl"], results=results, record=record)
        ranks.wait()


def first_answers(chosen: Mapping[str, tasks.Task], answers: list[dict]) -> list[dict[str, str]]:
    """The first question of each task that is answered in words, and what the model said, for the report."""
    written = [row for row in answers if row["index"] == row.get("sample", 0) == 0 and "answer" in row]
    return [{"prompt": question(chosen[row["task"]][0]), "text": row["answer"]} for row in written]


def question(conversation: dict) -> str:
    return next(message["content"] for message in conversation["messages"] if message["role"] == "user")


if __name__ == "__main__":
    run_program(main)
